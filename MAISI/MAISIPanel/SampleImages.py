"""The synthetic example that Slicer's module *Sample Data* offers in the category *MAISI*. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

SAMPLE_FOLDER = Path(__file__).resolve().parents[1] / "Resources" / "SampleData"
SAMPLE_NAME = "MAISIHeadNeck"
#: File → node in the scene, the kind that Slicer reads it as, and its SHA-256: Slicer keeps copies of samples, and a
#: copy from an earlier version of the extension is told by it.
SAMPLE_FILES = {
    "MAISIHeadNeck.nrrd": (
        "MAISI head and neck",
        "VolumeFile",
        "9fd5e00b551c189e74de4fb47e2c412a04fb170043281e99fa2c12baf7f42fd3",
    ),
    "MAISIHeadNeck.seg.nrrd": (
        "MAISI head and neck mask",
        "SegmentationFile",
        "46ab56498d2ba9b8d497b029c33b579b4ffbc1b614196d191ab1e7fb5dadadb1",
    ),
}


def registerSampleData() -> None:
    """Adds the example to *Sample Data*: a CT made by head-neck-mini, with its segmentation. Call it at start-up."""
    try:
        from SampleData import SampleDataLogic
    except ImportError:  # Slicer can be started without that module
        return
    nodeNames, kinds, digests = zip(*SAMPLE_FILES.values(), strict=True)
    SampleDataLogic.registerCustomSampleDataSource(
        category="MAISI",
        sampleName=SAMPLE_NAME,
        uris=[(SAMPLE_FOLDER / name).as_uri() for name in SAMPLE_FILES],
        fileNames=list(SAMPLE_FILES),
        nodeNames=list(nodeNames),
        loadFileType=list(kinds),
        checksums=[f"SHA256:{digest}" for digest in digests],
        thumbnailFileName=str(SAMPLE_FOLDER / f"{SAMPLE_NAME}.png"),
    )
