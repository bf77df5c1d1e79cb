"""Pictures of real patients and of images made from their masks, side by side.

``python Testing/benchmarks/real_and_synthetic.py --data OPENKBP/validation --out PICTURE.png [--bundle NAME_OR_FOLDER]
[--cases pt_201 pt_227]``. The window of all of them is −160 to 240 HU. Does nothing without ``--data``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import MAISILib as maisi
from MAISILib.files.atomic import atomic_path
from MAISILib.files.nifti import write_labels
from MAISILib.files.preview import draw_preview
from MAISILib.training.head_neck import crop_grid, read_case, sample_case

REAL_NOTICE = "A real patient of OpenKBP"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("real-and-synthetic.png"))
    parser.add_argument("--bundle", default="head-neck-mini")
    parser.add_argument("--cases", nargs="+", default=["pt_201", "pt_213", "pt_227"])
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    if given.data is None:
        print("needs --data: real patients are not part of the project")
        return
    from PIL import Image

    bundle = maisi.open_bundle(given.bundle)
    best = bundle.manifest.recommended[0]
    columns = []
    for name in given.cases:
        case = read_case(given.data, name)
        grid = crop_grid(case, best.size, best.spacing, 0.5)
        ct, labels = sample_case(case, grid)
        mask = maisi.LabelMap(labels, grid.affine, bundle.labels, name)
        with tempfile.TemporaryDirectory() as folder:
            write_labels(mask, Path(folder) / "mask.nii.gz")
            request = maisi.GenerateRequest(mask_file=Path(folder) / "mask.nii.gz", seed=given.seed)
            made = maisi.generate(bundle, request).samples[0]
        print(f"{name}: {made.quality.summary() if made.quality else 'not checked'}")
        real = draw_preview(maisi.Volume(ct, grid.affine), None, f"{name}, real", notice=REAL_NOTICE)
        ours = draw_preview(maisi.Volume(made.image.array, grid.affine), None, f"{name}'s mask, {bundle.name}")
        columns.append((real, ours))
    width = sum(real.width for real, _ in columns[:2])
    picture = Image.new("RGB", (width, sum(real.height for real, _ in columns)))
    top = 0
    for real, ours in columns:
        picture.paste(real, (0, top))
        picture.paste(ours, (real.width, top))
        top += real.height
    picture = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.LANCZOS)
    with atomic_path(given.out) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    print(given.out)


if __name__ == "__main__":
    sys.exit(main())
