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
        "2a23f63d747324846c334d4c8e612f6bbd3b59af92bbfe1d05e624f1c2ab6af3",
    ),
    "MAISIHeadNeck.seg.nrrd": (
        "MAISI head and neck mask",
        "SegmentationFile",
        "5ead7826be5c99d8d2fa7d49aaa35163ab58e80908a3497a0280c9abd3bacbea",
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
