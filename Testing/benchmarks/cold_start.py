"""From nothing to the first sample: import, a bundle opened, the first plan on a computer, later plans, the sample.

``make bench``, or ``python Testing/benchmarks/cold_start.py [--json FILE]``. Each row is a process of its own; its time
is that of the whole process, the interpreter's start included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_OPEN = (
    "import MAISILib as maisi; bundle = maisi.open_bundle('head-neck-mini'); request = maisi.GenerateRequest(seed=7)"
)
_PLAN = f"{_OPEN}; maisi.plan(bundle, request, device='cpu')"
ROWS = {
    "python": "pass",
    "import MAISILib": "import MAISILib",
    "bundle opened": _OPEN,
    "import torch": "import torch",
    "first plan (computer measured)": _PLAN,
    "later plan": _PLAN,
    "first sample": f"{_OPEN}; maisi.generate(bundle, request, device='cpu')",
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="which of them")
    given = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as data:
        for name in given.rows:
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", ROWS[name]], check=True, env={**os.environ, "MAISI_DATA": data})
            figures[name] = time.perf_counter() - started
            print(f"{name:32}{figures[name]:8.2f} s", flush=True)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
