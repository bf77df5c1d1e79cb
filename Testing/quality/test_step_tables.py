from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from MAISILib.anatomy.labels import default_table
from MAISILib.anatomy.masks import check_mask
from MAISILib.errors import FileFormatError, MaisiError, RequestError
from MAISILib.files.images import read_mask
from MAISILib.quality.image_sets import ImageFile, find_images
from MAISILib.quality.step_tables import Row, Sampling, chart_of, measure, table_of
from MAISILib.volumes import LabelMap, Volume
from Testing.quality.image_folders import patient_and_mask, volume, write_case, write_ct
from Testing.quality.test_fid_evaluation import SliceMeans

WAYS = [Sampling("a-model", "rflow", solver, steps) for solver in ("euler", "heun") for steps in (1, 4)]


class Maker:
    """Images that come nearer to the real ones with more steps; counts them, and may stop at one."""

    def __init__(self, stop_at: int = 1000) -> None:
        self.made, self.stop_at = 0, stop_at

    def __call__(self, case: ImageFile, way: Sampling, number: int) -> tuple[Volume, float]:
        self.made += 1
        if self.made == self.stop_at:
            raise KeyboardInterrupt
        seed = int(case.name[1:])
        return volume(patient_and_mask(seed)[0] + 200 / way.steps), float(way.steps)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    for seed in range(3):
        write_case(tmp_path / "real" / f"p{seed}", *patient_and_mask(seed))
    return tmp_path / "real"


def read_checked(path: Path) -> LabelMap:
    mask = read_mask(path, default_table())
    check_mask(mask, default_table())
    return mask


def run(real: Path, make: Maker, work: Path, *, seed: int = 7, limit: int | None = None) -> list[Row]:
    cases = find_images(real, limit=limit)
    return measure(WAYS, cases, make, real, SliceMeans, work, read_mask=read_checked, seed=seed, replicates=0)


def test_more_steps_come_nearer_and_take_longer(real: Path, tmp_path: Path) -> None:
    rows = run(real, Maker(), tmp_path / "work")
    assert [row.sampling for row in rows] == WAYS
    assert rows[1].report.fid["mean"] < 0.5 * rows[0].report.fid["mean"]
    assert [row.seconds for row in rows] == [1, 4, 1, 4]
    table = table_of(rows)
    assert len(table.splitlines()) == 2 + len(WAYS)
    assert "| a-model (rflow) | heun | 4 |" in table
    assert "| 4.00 × |" in table


def test_run_that_was_stopped_makes_only_what_is_missing(real: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        run(real, Maker(stop_at=6), work)
    rest = Maker()
    rows = run(real, rest, work)
    assert rest.made == 3 * len(WAYS) - 5
    whole = run(real, Maker(), tmp_path / "whole")
    assert [row.report.fid for row in rows] == [row.report.fid for row in whole]


def test_images_of_another_seed_or_mask_are_made_again(real: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(real, Maker(), work, seed=0)
    same, other, masked = Maker(), Maker(), Maker()
    run(real, same, work, seed=0)
    run(real, other, work, seed=7)
    write_case(real / "p1", patient_and_mask(1)[0], patient_and_mask(5)[1])
    run(real, masked, work, seed=7)
    assert [same.made, other.made, masked.made] == [0, 3 * len(WAYS), len(WAYS)]


def test_fewer_cases_use_the_images_of_more(real: Path, tmp_path: Path) -> None:
    run(real, Maker(), tmp_path / "work")
    fewer = Maker()
    run(real, fewer, tmp_path / "work", limit=2)
    assert fewer.made == 0


def test_images_of_other_cases_in_the_same_folder_are_not_measured(real: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    before = run(real, Maker(), work)
    for seed in (10, 11, 12):
        write_case(tmp_path / "others" / f"a{seed}", *patient_and_mask(seed))
    others = run(tmp_path / "others", Maker(), work)
    after = run(real, Maker(), work)
    assert [row.report.fid for row in after] == [row.report.fid for row in before]
    alone = run(tmp_path / "others", Maker(), tmp_path / "alone")
    assert [row.report.fid for row in others] == [row.report.fid for row in alone]


def test_time_alone_beside_an_image_does_not_say_what_it_is_of(real: Path, tmp_path: Path) -> None:
    run(real, Maker(), tmp_path / "work")
    (told,) = (tmp_path / "work").glob("images/a-model/heun-4/p1/seconds.json")
    told.write_text(f"{json.loads(told.read_text())['seconds']}\n")
    again = Maker()
    run(real, again, tmp_path / "work")
    assert again.made == 1


def test_chart_has_a_line_for_each_solver_and_a_point_for_each_set(real: Path, tmp_path: Path) -> None:
    chart = ElementTree.fromstring(chart_of(run(real, Maker(), tmp_path / "work")))
    name = "{http://www.w3.org/2000/svg}"
    assert len(chart.findall(f"{name}polyline")) == 2
    heights = np.array([float(point.get("cy", "")) for point in chart.findall(f"{name}circle")])
    assert heights.shape == (4,)
    assert heights[0] < heights[1], "a smaller distance lies lower"
    assert {"euler", "heun", "1", "4", "steps"} <= {text.text for text in chart.findall(f"{name}text")}


def test_chart_of_distances_that_are_close_tells_them(real: Path, tmp_path: Path) -> None:
    row = run(real, Maker(), tmp_path / "work")[0]
    rows = [
        dataclasses.replace(row, report=dataclasses.replace(row.report, fid={**row.report.fid, "mean": mean}))
        for mean in (2.6, 3.0)
    ]
    texts = {text.text for text in ElementTree.fromstring(chart_of(rows)).iter("{http://www.w3.org/2000/svg}text")}
    assert {"2.6", "3"} <= texts


def test_images_without_masks_are_named(tmp_path: Path) -> None:
    write_ct(tmp_path / "real" / "p0_ct.nii.gz", patient_and_mask(0)[0])
    with pytest.raises(FileFormatError, match=r"p0_ct\.nii\.gz"):
        run(tmp_path / "real", Maker(), tmp_path / "work")


def test_image_that_is_damaged_or_whose_note_is_has_it_made_again(real: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(real, Maker(), work)
    notes = sorted((work / "images").rglob("seconds.json"))
    for note, content in zip(notes, ("{", "[1]", '{"seconds": "x"}', '{"seconds": -1}'), strict=False):
        note.write_text(content, encoding="utf-8")
    notes[4].with_name("image.nii.gz").unlink()
    cut = notes[5].with_name("image.nii.gz")
    cut.write_bytes(cut.read_bytes()[:100])
    as_text = json.loads(notes[6].read_text(encoding="utf-8"))
    notes[6].write_text(json.dumps({**as_text, "seconds": str(as_text["seconds"])}), encoding="utf-8")
    again = Maker()
    rows = run(real, again, work)
    assert again.made == 6
    assert [row.seconds for row in rows] == [1, 4, 1, 4]


def damaged_mask(last: Path) -> None:
    (last / "mask.nii.gz").write_bytes(b"no mask")


def unknown_label(last: Path) -> None:
    image, mask = patient_and_mask(2)
    write_ct(last / "mask.nii.gz", np.where(mask.array > 0, 250, 0))
    write_ct(last / "image.nii.gz", image)


def damaged_image(last: Path) -> None:
    (last / "image.nii.gz").write_bytes(b"no image")


def blank_image(last: Path) -> None:
    image, mask = patient_and_mask(2)
    write_case(last, image * 0 - 1000, mask)


def other_voxels(last: Path) -> None:
    write_ct(last / "image.nii.gz", patient_and_mask(2)[0], (6.0, 6.0, 4.5))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged_mask, "mask"),
        (unknown_label, "250"),
        (damaged_image, r"1 of 3 images cannot be used.*p2.*a text file that lists the others"),
        (blank_image, r"1 of 3 images cannot be used.*p2.*blank"),
        (other_voxels, "different voxel sizes.*--spacing"),
    ],
)
def test_all_cases_are_looked_through_before_anything_is_made(
    real: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(real / "p2")
    with pytest.raises(MaisiError, match=message):
        run(real, Maker(stop_at=1), tmp_path / "work")


def test_what_cannot_be_measured_is_refused_before_anything_is_made(real: Path, tmp_path: Path) -> None:
    never = Maker(stop_at=1)
    with pytest.raises(RequestError, match=r"real set has 1 image; .*at least two"):
        run(real, never, tmp_path / "work", limit=1)
    with pytest.raises(RequestError, match=r"among the files of the real set.*--work"):
        run(real, never, real / "work")
    assert not (real / "work").exists()
