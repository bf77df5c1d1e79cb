"""DICOM files as other programs write them: segmentations and the slices of a CT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

BINARY = "1.2.840.10008.5.1.4.1.1.66.4"
CT = "1.2.840.10008.5.1.4.1.1.2"
Code = tuple[str, str, str]


def dataset_of(**attributes: Any) -> Dataset:
    """A dataset with these attributes."""
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def code(cells: Code) -> list[Dataset]:
    """A code sequence with one item: scheme, value, meaning."""
    scheme, value, meaning = cells
    return [dataset_of(CodingSchemeDesignator=scheme, CodeValue=value, CodeMeaning=meaning)]


def segment(
    label: str, category: Code, kind: Code, modifier: Code | None = None, region: Code | None = None
) -> Dataset:
    """The description of a segment."""
    item = dataset_of(SegmentLabel=label, SegmentAlgorithmType="AUTOMATIC")
    item.SegmentedPropertyCategoryCodeSequence = code(category)
    item.SegmentedPropertyTypeCodeSequence = code(kind)
    if modifier:
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = code(modifier)
    if region:
        item.AnatomicRegionSequence = code(region)
    return item


def planes(affine: np.ndarray) -> tuple[list[float], list[float], float, np.ndarray]:
    """Orientation, pixel spacing, slice distance, and the LPS affine, of voxels (column, row, slice)."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    orientation = [*(lps[:3, 0] / steps[0]), *(lps[:3, 1] / steps[1])]
    return [round(float(v), 8) for v in orientation], [float(steps[1]), float(steps[0])], float(steps[2]), lps


def _saved(path: Path, dataset: Dataset, sop_class: str, syntax: str = ExplicitVRLittleEndian) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = UID(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = FileDataset(str(path), dataset, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID = UID(sop_class)
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.save_as(path, enforce_file_format=True)
    return path


def write_dicom_segmentation(
    path: Path,
    affine: np.ndarray,
    segments: Sequence[tuple[Dataset, np.ndarray]],
    *,
    frame_of_reference: str = "1.2.3",
    syntax: str = ExplicitVRLittleEndian,
    kind: str = "BINARY",
    numbers: Sequence[int] = (),
    changed: Any = lambda dataset: None,
) -> Path:
    """Writes segments ``(X, Y, Z)``; slices without voxels of a segment have no frame, as most programs leave them out.

    ``numbers`` are those of the segments, else they count from 1; ``changed`` may damage the dataset before it is
    written.
    """
    orientation, spacing, between, lps = planes(affine)
    dataset = dataset_of(FrameOfReferenceUID=frame_of_reference, SegmentationType=kind, Modality="SEG")
    dataset.Columns, dataset.Rows = segments[0][1].shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = dataset.SamplesPerPixel = 1
    dataset.HighBit = dataset.PixelRepresentation = 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    shared = Dataset()
    shared.PlaneOrientationSequence = [dataset_of(ImageOrientationPatient=orientation)]
    shared.PixelMeasuresSequence = [
        dataset_of(PixelSpacing=spacing, SliceThickness=between, SpacingBetweenSlices=between)
    ]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups, bits, described = [], [], []
    for number, (item, inside) in zip(numbers or range(1, len(segments) + 1), segments, strict=True):
        item.SegmentNumber = number
        described.append(item)
        for index in np.flatnonzero(inside.any(axis=(0, 1))):
            position = [float(v) for v in (lps @ [0, 0, index, 1])[:3]]
            group = Dataset()
            group.PlanePositionSequence = [dataset_of(ImagePositionPatient=[round(v, 6) for v in position])]
            group.SegmentIdentificationSequence = [dataset_of(ReferencedSegmentNumber=number)]
            groups.append(group)
            bits.append(inside[:, :, index].T.ravel())
    dataset.SegmentSequence = described
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = len(groups)
    packed = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    dataset["PixelData"].VR = "OB"
    changed(dataset)
    return _saved(path, dataset, BINARY, syntax)


def write_dicom_series(
    folder: Path, affine: np.ndarray, shape: tuple[int, int, int], *, frame_of_reference: str = "1.2.3"
) -> Path:
    """Writes the slices of a CT, last one first, without pixels: only their headers are looked at."""
    orientation, spacing, thickness, lps = planes(affine)
    series = generate_uid()
    for index in range(shape[2]):
        dataset = dataset_of(FrameOfReferenceUID=frame_of_reference, SeriesInstanceUID=series, Modality="CT")
        dataset.Columns, dataset.Rows = shape[:2]
        dataset.PixelSpacing, dataset.SliceThickness, dataset.ImageOrientationPatient = spacing, thickness, orientation
        dataset.ImagePositionPatient = [round(float(v), 6) for v in (lps @ [0, 0, index, 1])[:3]]
        _saved(folder / f"IM{shape[2] - index:04d}", dataset, CT)
    return folder
