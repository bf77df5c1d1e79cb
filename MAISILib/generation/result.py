"""What a run gives back, and how it is written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.files.atomic import atomic_folder, write_text
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.files.preview import write_preview
from MAISILib.generation.mask_story import mask_story

if TYPE_CHECKING:
    from MAISILib.quality.case_check import CaseCheck
    from MAISILib.volumes import LabelMap, Volume


@dataclass(frozen=True)
class Sample:
    """One generated volume.

    Args:
        index: Its place in the request.
        seed: Derived from the request's seed and the index.
        image: int16 HU (CT) or intensities (MR).
        mask: The full conditioning mask on the image's grid, body included; ``None`` for image-only generation.
        quality: What was found wrong with image and mask; ``None`` where the request does not want to know.
        attempts: How often it was generated until the HU of its organs were right (at most 3).
        provenance: How it was made; enough to make it again.
    """

    index: int
    seed: int
    image: Volume
    mask: LabelMap | None
    quality: CaseCheck | None
    attempts: int
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """Folder name, ``sample-0000``."""
        return f"sample-{self.index:04d}"

    def summary(self, folder: str | Path) -> dict[str, Any]:
        """What a list of results shows, as plain data.

        Args:
            folder: Where it was saved.
        """
        return {
            "folder": str(folder),
            "seed": self.seed,
            "index": self.index,
            "passed": self.quality.passed if self.quality else None,
            "verdict": self.quality.verdict if self.quality else "not checked",
            "quality": self.quality.summary() if self.quality else "not checked",
            "attempts": self.attempts,
            "mask": mask_story(self.provenance["mask_source"]),
            "seconds": self.provenance["seconds"],
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Writes ``image.nii.gz``, ``mask.nii.gz``, ``preview.png`` and ``provenance.json`` as the folder ``folder``.

        The folder appears as a whole, or not at all; a sample that is there already is replaced, other files are not.

        Returns:
            The written files.

        Raises:
            OutputError: The folder cannot be written.
        """
        target = Path(folder)
        with atomic_folder(target, replaces="provenance.json") as staging:
            write_volume(self.image, staging / "image.nii.gz", self.name)
            if self.mask is not None:
                write_labels(self.mask, staging / "mask.nii.gz", self.name)
            title = f"{self.provenance['bundle']['name']}  {self.name}"
            write_preview(staging / "preview.png", self.image, self.mask, title=title)
            provenance = json.dumps(self.provenance, indent=2, ensure_ascii=False)
            write_text(staging / "provenance.json", provenance + "\n")
        return sorted(path for path in target.iterdir() if path.is_file())


@dataclass(frozen=True)
class GenerateResult:
    """All samples of a request; ``image``, ``mask``, ``quality`` and ``provenance`` are those of the first."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def image(self) -> Volume:
        """Image of the first sample."""
        return self.samples[0].image

    @property
    def mask(self) -> LabelMap | None:
        """Mask of the first sample."""
        return self.samples[0].mask

    @property
    def quality(self) -> CaseCheck | None:
        """Quality of the first sample."""
        return self.samples[0].quality

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance of the first sample."""
        return self.samples[0].provenance

    def save(self, folder: str | Path) -> list[Path]:
        """Writes every sample into a folder of its own below ``folder``; see :meth:`Sample.save`."""
        return [path for sample in self.samples for path in sample.save(Path(folder) / sample.name)]
