"""What the CMake lists of the Slicer extension must name: an unlisted file is silently left out of the extension.

Run as a program (``make extension-lists``), it writes the lists anew from the files under version control.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
EFFECT = "MAISI/SegmentEditorMAISI"

#: (CMake file, its list) → the folder that the list's names start from, what belongs to it, and what does not.
LISTS = {
    ("MAISI/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"): ("MAISI", r".*\.py", rf"{EFFECT}/.*"),
    ("MAISI/CMakeLists.txt", "MODULE_PYTHON_RESOURCES"): ("MAISI", r"MAISI/Resources/.*", "-"),
    (f"{EFFECT}/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"): (EFFECT, r".*\.py", "-"),
    (f"{EFFECT}/CMakeLists.txt", "MODULE_PYTHON_RESOURCES"): (EFFECT, r".*", r".*\.py|.*/CMakeLists\.txt"),
    ("MAISILib/CMakeLists.txt", "ENGINE_FILES"): ("MAISILib", r".*", r".*/CMakeLists\.txt"),
    ("MAISILib/CMakeLists.txt", "ENGINE_RESOURCES"): ("Resources", r".*", "-"),
}


def files_under(folder: str) -> list[str]:
    """Files of the repository in a folder; where there is no git, all that lie there."""
    git = ["git", "ls-files", "-z", "--", folder]
    try:
        run = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        names = [name for name in run.stdout.split("\0") if name and (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        names = []
    found = names or [p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()]
    return sorted(name for name in found if "__pycache__" not in name)


def expected(cmake: str, variable: str) -> list[str]:
    """The names that a list must have, sorted."""
    folder, belongs, does_not = LISTS[cmake, variable]
    names = [name for name in files_under(folder) if re.fullmatch(belongs, name) and not re.fullmatch(does_not, name)]
    return [PurePosixPath(name).relative_to(folder).as_posix() for name in names]


def listed(cmake: str, variable: str) -> list[str]:
    """The names that a list has."""
    text = (ROOT / cmake).read_text(encoding="utf-8")
    return [line.strip() for line in _list(variable).search(text)[1].splitlines() if line.strip()]  # type: ignore[index]


def write(cmake: str, variable: str) -> None:
    path = ROOT / cmake
    lines = "".join(f"  {name}\n" for name in expected(cmake, variable))
    text = path.read_text(encoding="utf-8")
    path.write_text(_list(variable).sub(f"set({variable}\n{lines}  )", text), encoding="utf-8", newline="\n")


def _list(variable: str) -> re.Pattern[str]:
    return re.compile(rf"set\({variable}\n(.*?)\s*\)", re.DOTALL)


if __name__ == "__main__":
    for cmake, variable in LISTS:
        write(cmake, variable)
