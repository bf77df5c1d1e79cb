"""The benchmark that plants faults counts the found ones."""

from __future__ import annotations

from MAISILib.quality.hu_check import OrganRange
from Testing.benchmarks.head_neck_mini import Patient
from Testing.benchmarks.planted_faults import table
from Testing.quality.image_folders import BONE, LIVER, patient_and_mask


def test_found_faults_are_counted_for_each_organ() -> None:
    cases = [patient_and_mask(seed) for seed in range(2)]
    patients = [Patient(f"p{number}", mask, image) for number, (image, mask) in enumerate(cases)]
    ranges = [
        OrganRange("liver", (LIVER,), 20.0, 160.0),
        OrganRange("bone", (BONE,), -900.0, 1000.0, 600.0, 20.0),
    ]
    told = table(patients, ranges, 300.0).splitlines()
    assert told[0] == "2 patients as they are: 2 passed"
    assert "| liver | 2 | 2 | 0 | 2 | 0 |" in told
    assert "| bone | 2 | 0 | 2 | 0 | 2 |" in told
    assert "mirrored masks that failed: 2" in told
