"""Which planted faults does the quality check find in real patients, and which sound patients does it not let pass?

``python -m Testing.benchmarks.planted_faults --data OPENKBP/validation [--bundle NAME] [--shift 200]``.
Does nothing without ``--data``.

In each patient, one organ after the other is made brighter and darker by ``--shift`` HU, and the mask is mirrored. A
fault of an organ counts as found where a finding names the organ that had none before.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import MAISILib as maisi
from MAISILib.quality.case_check import CaseCheck, check_case
from MAISILib.quality.counting import counted
from MAISILib.quality.hu_check import OrganRange, read_ranges
from Testing.benchmarks.head_neck_mini import Patient, read_patients


def names(check: CaseCheck, organ: str) -> set[str]:
    """The verdicts of the findings about an organ."""
    about = (f"{organ} is too", f"the tissue of {organ} is")
    return {finding.verdict for finding in check.findings if finding.text.startswith(about)}


def table(patients: Iterable[Patient], ranges: Sequence[OrganRange], shift: float) -> str:
    """Counts of found faults in Markdown, after a line for the patients as they are."""
    shifts = (shift, -shift)
    found: Counter[tuple[str, float, str]] = Counter()
    present: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    reasons: list[str] = []
    mirrored = 0
    for patient in patients:
        assert patient.ct is not None
        mask = patient.mask

        def check(values: np.ndarray, mask: maisi.LabelMap = mask) -> CaseCheck:
            return check_case("", maisi.Volume(values, mask.affine, "HU"), mask, ranges)

        sound = check(patient.ct)
        verdicts[sound.verdict] += 1
        reasons += [f"{patient.name}: {finding.text}" for finding in sound.findings]
        flipped = check_case(
            "", maisi.Volume(patient.ct, mask.affine, "HU"), mask.with_array(mask.array[::-1].copy()), ranges
        )
        mirrored += flipped.verdict == "failed"
        assert sound.hu is not None
        for organ in sound.hu.organs:
            present[organ.organ] += 1
            inside = np.isin(mask.array, organ.labels)
            for by in shifts:
                spoilt = check(np.where(inside, patient.ct + by, patient.ct).clip(-1000, 1000))
                for verdict in names(spoilt, organ.organ) - names(sound, organ.organ):
                    found[organ.organ, by, verdict] += 1
    lines = [
        f"{counted(verdicts.total(), 'patient')} as they are: "
        + ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common()),
        *reasons,
        f"mirrored masks that failed: {mirrored}",
        "",
        "| organ | patients | " + " | ".join(f"{by:+.0f} HU: failed | unusual" for by in shifts) + " |",
        "|---|---|---|---|---|---|",
    ]
    for organ, number in present.items():
        cells = [str(found[organ, by, verdict]) for by in shifts for verdict in ("failed", "unusual")]
        lines.append(f"| {organ} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of OpenKBP patients that were not trained on")
    parser.add_argument("--bundle", default="head-neck-mini", help="whose quality table")
    parser.add_argument("--cases", type=int, help="at most so many patients")
    parser.add_argument("--shift", type=float, default=200.0, help="HU")
    given = parser.parse_args()
    if given.data is None:
        print("needs --data: real patients are not part of the project")
        return
    bundle = maisi.open_bundle(given.bundle)
    path = bundle.quality_path()
    ranges = read_ranges(path) if path else []
    print(table(read_patients(bundle, given.data, given.cases), ranges, given.shift))


if __name__ == "__main__":
    main()
