"""Commands with a bundle of tiny networks: what goes in, and what comes back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.catalogue import installed_folder
from MAISILib.diffusion.solver_names import SOLVER_NAMES
from MAISILib.diffusion.solvers import SOLVERS, make_solver
from MAISILib.errors import BundleError, Cancelled, LicenceError, MaskError, RequestError
from MAISILib.jobs.commands import Command, fields_of, make_commands
from MAISILib.jobs.protocol import Job, Message
from Testing.tiny_bundle import make_tiny_bundle

if TYPE_CHECKING:
    from Testing.jobs.conftest import Answers

REQUEST: dict[str, Any] = {"steps": 2, "seed": 5, "quality_check": False}


@pytest.fixture
def commands() -> dict[str, Command]:
    return make_commands()


@pytest.fixture
def do(commands: dict[str, Command], job: Job) -> Callable[..., dict[str, Any]]:
    """Does a command as a worker would; the data must survive JSON."""

    def run(command: str, **fields: Any) -> dict[str, Any]:
        function = commands[command]
        data = function(job, **fields_of(function, Message(command, "7", fields)))
        return json.loads(json.dumps(data, allow_nan=False))

    return run


Do = Callable[..., dict[str, Any]]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def image_digest(folder: str) -> str:
    return hashlib.sha256(Path(folder, "image.nii.gz").read_bytes()).hexdigest()


def test_samples_are_written_and_announced_as_they_come(do: Do, answers: Answers, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "mit Leerzeichen µ"
    told = do("generate", bundle=str(tiny), request={**REQUEST, "count": 2, "anatomy": ["liver"]}, out=str(out))
    announced = [{k: v for k, v in event.items() if k not in ("event", "id")} for event in answers.of("sample")]
    assert announced == told["samples"]
    assert [sample["index"] for sample in announced] == [0, 1]
    assert [sample["folder"] for sample in announced] == [str(out / "sample-0000"), str(out / "sample-0001")]
    assert len({sample["seed"] for sample in announced}) == 2
    assert files_in(out / "sample-0001") == {"image.nii.gz", "mask.nii.gz", "preview.png", "provenance.json"}
    progress = answers.of("progress")
    assert {event["stage"] for event in progress} >= {"mask", "load", "diffusion", "decode", "done"}
    assert [e["done"] for e in progress if (e["stage"], e["sample"]) == ("diffusion", 1)] == [1, 2]
    assert all(event["remaining_seconds"] >= 0 for event in progress)
    pictures = [event["preview"] for event in progress if "preview" in event]
    assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")


def test_a_sample_tells_what_became_of_the_wishes_for_its_mask(
    do: Do, answers: Answers, tiny: Path, tmp_path: Path
) -> None:
    lesion = {"lesion": "lung tumor", "diameter": 12.0, "host": None}
    request = {**REQUEST, "vary": 0, "insert_lesion": lesion}
    do("generate", bundle=str(tiny), request=request, out=str(tmp_path / "out"))
    (event,) = answers.of("sample")
    assert event["mask"][0].startswith("another patient, variation ")
    assert event["mask"][1].endswith(" in left lung upper lobe (asked for: 12 mm)")


def test_a_replay_gives_the_same_voxels(do: Do, tiny: Path, tmp_path: Path) -> None:
    made = do("generate", bundle=str(tiny), request={**REQUEST, "count": 2}, out=str(tmp_path / "a"))["samples"][1]
    again = do("generate", replay=str(Path(made["folder"], "provenance.json")), out=str(tmp_path / "b"))["samples"]
    assert [sample["index"] for sample in again] == [1]
    assert image_digest(again[0]["folder"]) == image_digest(made["folder"])
    with pytest.raises(RequestError, match="leave them out"):
        do("generate", replay="provenance.json", bundle=str(tiny), out="out")


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"request": {"anatomy": ["livr"]}}, RequestError, "Did you mean 'liver'"),
        ({"request": {"stepps": 3}}, RequestError, "The request.*Did you mean 'steps'"),
        ({"request": {"output_size": [15, 16, 16]}}, RequestError, "Nearest: 16×16×16"),
        ({"request": {"device": 3}}, RequestError, "Unknown field 'device'"),
        ({"request": [1]}, RequestError, "'request' is an object"),
        ({"request": None}, RequestError, "is an object|Give bundle and request"),
        ({"request": {}, "bundle": "tiiny"}, BundleError, "no bundle 'tiiny'"),
        ({"request": {}, "device": "cuda:9"}, RequestError, "not available"),
        ({"request": {"mask_file": "gone.nii.gz"}}, Exception, "gone.nii.gz"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "generate"])
def test_bad_requests_are_refused_with_advice_and_nothing_is_written(
    do: Do, tiny: Path, tmp_path: Path, command: str, fields: dict[str, Any], error: type[Exception], said: str
) -> None:
    place = {"out": str(tmp_path / "out")} if command == "generate" else {}
    with pytest.raises(error, match=said):
        do(command, **{"bundle": str(tiny), **place, **fields})
    assert not (tmp_path / "out").exists()


def test_a_cancelled_run_leaves_nothing(
    commands: dict[str, Command], job: Job, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(stage: str, *more: Any, **others: Any) -> None:
        if stage == "decode":
            job.cancel.cancel()

    monkeypatch.setattr(job, "progress", progress)
    with pytest.raises(Cancelled):
        commands["generate"](job, tmp_path / "out", bundle=str(tiny), request=REQUEST)
    assert not (tmp_path / "out").exists()


def test_a_plan_says_in_one_line_what_it_costs(do: Do, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = do("plan", bundle=str(tiny), request={"count": 3})
    assert told["fits"]
    assert told["text"].startswith("3 volumes of 16×16×16 voxels on ")
    assert told["available_bytes"] > told["peak_bytes"] > 0
    monkeypatch.setattr("MAISILib.generation.plan.available_bytes", lambda device: 1000)
    told = do("plan", bundle=str(tiny), request={})
    assert not told["fits"]
    assert told["text"].startswith("Does not fit: needs 0.5 GB")


def test_the_list_of_bundles_tells_states_and_licences(do: Do, data_folder: Path) -> None:
    make_tiny_bundle(installed_folder("mine"), name="mine")
    (make_tiny_bundle(installed_folder("torn"), name="torn") / "bundle.json").write_text("{")
    rows = {row["name"]: row for row in do("bundles")["bundles"]}
    assert (rows["head-neck-mini"]["state"], rows["head-neck-mini"]["problem"]) == ("embedded", "")
    assert rows["head-neck-mini"]["licence"]["accepted"]
    assert (rows["nv-rflow-ct"]["state"], rows["nv-rflow-ct"]["folder"]) == ("downloadable", None)
    assert rows["nv-rflow-ct"]["licence"]["must_accept"]
    assert not rows["nv-rflow-ct"]["licence"]["accepted"]
    assert (rows["mine"]["state"], rows["mine"]["version"]) == ("installed", "1")
    assert rows["torn"]["state"] == "installed"
    assert "not valid JSON" in rows["torn"]["problem"]


def test_a_description_offers_what_the_bundle_can_do(do: Do, tiny: Path) -> None:
    told = do("describe", bundle=str(tiny))
    assert told["name"] == "tiny"
    assert told["anatomies"] == ["body", "left lung upper lobe", "liver", "lung tumor"]
    assert told["mask_sources"] == ["library", "file", "none"]
    assert (told["divisor"], told["steps"], told["guidance"]) == (4, 4, True)
    liver = next(label for label in told["labels"] if label["name"] == "liver")
    assert (liver["value"], liver["color"], liver["host"]) == (1, [221, 130, 101], None)
    assert "Liver" in liver["terminology"]
    assert next(label for label in told["labels"] if label["name"] == "lung tumor")["host"] == 28
    assert told["recommended"][0]["size"] == [16, 16, 16]
    assert told["regions"] == ["chest"]


def test_sources_that_are_not_there_are_not_offered(do: Do, tmp_path: Path) -> None:
    bare = make_tiny_bundle(tmp_path / "bare", with_controlnet=False)
    assert do("describe", bundle=str(bare))["mask_sources"] == ["none"]
    ddpm = do("describe", bundle=str(make_tiny_bundle(tmp_path / "ddpm", "ddpm")))
    assert (ddpm["solvers"], ddpm["guidance"], ddpm["needs_regions"]) == (["ancestral", "ddim", "dpm++"], False, True)
    assert ddpm["regions"] == ["head", "chest", "abdomen", "lower"]
    broken = make_tiny_bundle(tmp_path / "broken", with_masks=1)
    (broken / "library" / "masks.json").unlink()
    told = do("describe", bundle=str(broken))
    assert told["mask_sources"] == ["file", "none"]
    assert "masks.json is missing" in told["problems"][0]


@pytest.mark.parametrize("kind", ["rflow", "ddpm"])
def test_the_offered_solvers_are_those_that_fit_the_default_first(kind: str) -> None:
    def fits(name: str) -> bool:
        try:
            return make_solver(name, kind) is not None
        except RequestError:
            return False

    assert set(SOLVER_NAMES[kind]) == {name for name in SOLVERS if fits(name)}
    assert isinstance(make_solver(None, kind), type(make_solver(SOLVER_NAMES[kind][0], kind)))


def test_a_bundle_is_imported_used_and_removed(do: Do, tiny: Path, tmp_path: Path) -> None:
    told = do("import", folder=str(tiny), name="mine")
    assert (told["name"], Path(told["folder"])) == ("mine", installed_folder("mine"))
    assert told["notes"][0].startswith("networks: ")
    assert do("generate", bundle="mine", request=REQUEST, out=str(tmp_path / "out"))["samples"]
    assert do("remove", bundle="mine") == {}
    with pytest.raises(BundleError, match="no bundle 'mine'"):
        do("generate", bundle="mine", request=REQUEST, out=str(tmp_path / "out"))


def test_a_cancelled_import_leaves_nothing(do: Do, job: Job, tiny: Path, data_folder: Path) -> None:
    job.cancel.cancel()
    with pytest.raises(Cancelled):
        do("import", folder=str(tiny), name="mine")
    assert files_in(data_folder) == set()
    assert not installed_folder("mine").exists()


def test_a_download_needs_the_licence(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LicenceError, match="NVIDIA"):
        do("download", bundle="nv-rflow-ct")
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> Path:
        asked.update(options)
        options["on_progress"](5_000_000, 10_000_000)
        return Path("there")

    monkeypatch.setattr("MAISILib.bundles.download.download", download)
    assert do("download", bundle="nv-rflow-ct", accept_licence=True) == {"folder": "there"}
    assert asked["accept_licence"] is True
    assert not asked["cancel"].is_set()


def test_a_download_hears_a_cancel(do: Do, job: Job, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> Path:
        options["on_progress"](5_000_000, 10_000_000)
        job.cancel.cancel()
        if options["cancel"].is_set():
            raise Cancelled("stopped")
        return Path("there")

    monkeypatch.setattr("MAISILib.bundles.download.download", download)
    with pytest.raises(Cancelled):
        do("download", bundle="nv-rflow-ct")
    assert answers.of("progress")[0]["message"] == "5 of 10 MB"


TERMINOLOGY = open_bundle("head-neck-mini").labels.find("mandible").terminology()


def test_segments_find_their_labels(do: Do) -> None:
    segments = [
        {"name": "Mandible"},
        {"name": "jaw", "terminology": TERMINOLOGY},
        {"name": "Parotid_L"},
        {"name": "lesion"},
        {"name": "foo"},
        {"name": "couch"},
        {"name": "from before", "tag": "11"},
    ]
    told = do(
        *("map_segments",), bundle="head-neck-mini", segments=segments,
        new_labels=["lesion=150:target"], edits={"couch": "ignore", "Mandible": "bone"},
    )  # fmt: skip
    found = {row["segment"]: (row["value"], row["label"], row["how"]) for row in told["mapping"]}
    assert found == {
        "Mandible": (138, "bone", "user"),
        "jaw": (137, "mandible", "terminology"),
        "Parotid_L": (135, "left parotid gland", "synonym"),
        "lesion": (150, "lesion", "new"),
        "foo": (None, None, "unknown"),
        "couch": (None, None, "ignored"),
        "from before": (11, "esophagus", "exact"),
    }
    advice = {row["segment"]: row["advice"] for row in told["mapping"]}
    assert advice["foo"].startswith("No label is known for it. Choose one")
    assert {name for name, text in advice.items() if text} == {"foo"}
    assert "Segment 'lesion' is label 150 (lesion), which is new." in told["notes"]


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"segments": ["liver"]}, RequestError, "Segment 1 is no object"),
        ({"segments": [], "new_labels": ["lesion"]}, RequestError, "is no new label"),
        ({"segments": [{"name": "a"}], "edits": {"b": "bone"}}, RequestError, "No case has a segment 'b'"),
        (
            {"segments": [{"name": "a", "tag": "11"}, {"name": "a", "tag": "121"}]},
            MaskError,
            "mean different labels",
        ),
    ],
)
def test_mappings_that_make_no_sense_are_refused(do: Do, fields: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        do("map_segments", bundle="head-neck-mini", **fields)


def test_the_estimate_of_a_fine_tuning_grows_with_its_steps_and_cases(do: Do, tmp_path: Path) -> None:
    parent = str(make_tiny_bundle(tmp_path / "tiny", schedule={"kind": "rflow", "steps": 1}))
    quick, long = (do("finetune_estimate", bundle=parent, cases=3, duration=d) for d in ("quick", "long"))
    assert (quick["steps"], long["steps"]) == (40, 600)
    assert long["seconds"] > quick["seconds"] >= 0
    with pytest.raises(RequestError, match="Did you mean 'quick'"):
        do("finetune_estimate", bundle=parent, cases=3, duration="quik")
    with pytest.raises(RequestError, match="needs cases"):
        do("finetune_estimate", bundle=parent, cases=0)
    with pytest.raises(RequestError, match="a whole number, not 'three'"):
        do("finetune_estimate", bundle=parent, cases="three")
    bare = make_tiny_bundle(tmp_path / "bare", with_controlnet=False)
    with pytest.raises(BundleError, match="no controlnet"):
        do("finetune_estimate", bundle=str(bare), cases=1)
