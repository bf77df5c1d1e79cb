"""The command as a process: what it prints where, the scene that it writes, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]


def test_generate_writes_samples_and_a_scene_and_says_so_in_json(start: Start, tiny: Path, work: Path) -> None:
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    process = start(
        *("generate", "--bundle", tiny, "--anatomy", "liver", "--seed", 5, "--count", 2, "--steps", 1),
        *("--out", "out", "--scene", "--json"),
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    told = json.loads(out)  # nothing but JSON on stdout
    assert "sample 0: diffusion" in err
    assert [sample["folder"] for sample in told["samples"]] == ["out/sample-0000", "out/sample-0001"]
    files = [work / name for sample in told["samples"] for name in sample["files"]]
    assert {path.name for path in files} == {"image.nii.gz", "mask.nii.gz", "preview.png", "provenance.json"}
    written = {path for path in (work / "out").rglob("*") if path.is_file()}
    assert written == {*files, work / told["scene"]}
    assert all(path.stat().st_size > 0 for path in files)

    from MAISILib import scene

    loaded = scene.load(work / told["scene"])
    volumes = loaded.GetNodesByClass("vtkMRMLScalarVolumeNode")
    segmentations = loaded.GetNodesByClass("vtkMRMLSegmentationNode")
    assert [volumes.GetItemAsObject(i).GetName() for i in range(2)] == ["tiny sample-0000", "tiny sample-0001"]
    assert segmentations.GetNumberOfItems() == 2
    segmentation = segmentations.GetItemAsObject(0).GetSegmentation()
    segments = {segmentation.GetNthSegment(i).GetName() for i in range(segmentation.GetNumberOfSegments())}
    assert segments == {"liver", "left lung upper lobe", "body"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_the_run_within_two_seconds_and_leaves_nothing(start: Start, tiny: Path, work: Path) -> None:
    process = start(*("generate", "--bundle", tiny, "--no-mask", "--size", 64, 64, 64, "--steps", 1000, "--out", "out"))
    assert process.stderr is not None
    for line in process.stderr:
        if "diffusion" in line:
            break
    else:
        pytest.fail("the run ended too early")
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    told = process.stderr.readline()
    assert time.monotonic() - asked < 2
    assert told == "maisi: Cancelled. Nothing was left half-written.\n"
    assert process.wait(timeout=60) == 130
    assert list(work.rglob("*")) == []


def test_bad_input_is_answered_without_pytorch(tiny: Path, work: Path) -> None:
    program = (
        "import sys; from MAISILib.cli.app import main\n"
        "code = main(sys.argv[1:]); sys.exit(code if not {'torch', 'monai'} & set(sys.modules) else 99)"
    )
    command = [sys.executable, "-c", program, "generate", "--bundle", str(tiny), "--anatomy", "livr"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=work, env=_environment())
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("maisi: ")
    assert "Did you mean 'liver'" in run.stderr
    assert list(work.rglob("*")) == []


def _environment() -> dict[str, str]:
    import os

    from Testing.imports import ROOT

    return {**os.environ, "PYTHONPATH": str(ROOT)}
