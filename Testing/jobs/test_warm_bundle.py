from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import OutOfMemory
from MAISILib.generation import plan as planning
from MAISILib.generation.request import GenerateRequest
from MAISILib.jobs.commands import make_commands
from MAISILib.jobs.protocol import Job
from Testing.jobs.test_commands import REQUEST, image_digest
from Testing.tiny_bundle import make_tiny_bundle

if TYPE_CHECKING:
    Generate = Callable[..., dict[str, Any]]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the networks that were loaded from disk."""
    names: list[str] = []
    load = Bundle.load

    def counted(self: Bundle, network: str, device: Any = "cpu") -> Any:
        names.append(f"{self.name} {network}")
        return load(self, network, device)

    monkeypatch.setattr(Bundle, "load", counted)
    return names


@pytest.fixture
def generate(make_job: Callable[[], Job], tmp_path: Path) -> Generate:
    command, runs = make_commands()["generate"], iter(range(100))

    def run(bundle: Path, **request: Any) -> dict[str, Any]:
        return command(make_job(), tmp_path / f"out-{next(runs)}", bundle=str(bundle), request={**REQUEST, **request})

    return run


THREE = ["tiny diffusion", "tiny controlnet", "tiny autoencoder"]


def test_the_second_run_loads_nothing_and_makes_the_same(generate: Generate, tiny: Path, loaded: list[str]) -> None:
    first = generate(tiny)
    assert loaded == THREE
    second = generate(tiny, count=2)
    assert loaded == THREE
    first_again = second["samples"][0]
    assert image_digest(first_again["folder"]) == image_digest(first["samples"][0]["folder"])


def test_another_bundle_sends_the_first_away(generate: Generate, tiny: Path, tmp_path: Path, loaded: list[str]) -> None:
    generate(tiny)
    generate(make_tiny_bundle(tmp_path / "other"), mask="none")
    assert loaded[3:] == ["other diffusion", "other autoencoder"]
    generate(tiny)
    assert loaded[5:] == THREE


def test_new_weights_in_the_same_folder_are_used(generate: Generate, tmp_path: Path, loaded: list[str]) -> None:
    before = generate(make_tiny_bundle(tmp_path / "tiny", seed=1), mask="none")
    shutil.rmtree(tmp_path / "tiny")
    after = generate(make_tiny_bundle(tmp_path / "tiny", seed=2), mask="none")
    assert len(loaded) == 4
    digests = {image_digest(told["samples"][0]["folder"]) for told in (before, after)}
    assert len(digests) == 2


def test_a_bundle_that_was_changed_by_hand_is_refused_not_remembered(generate: Generate, tmp_path: Path) -> None:
    folder = make_tiny_bundle(tmp_path / "tiny")
    generate(folder, mask="none")
    weights = folder / "diffusion.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Exception, match="SHA-256"):
        generate(folder, mask="none")


def test_short_memory_is_not_filled_with_networks_that_wait(
    generate: Generate, tiny: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tiny)
    needed = planning.plan(Bundle(tiny), GenerateRequest(**REQUEST)).peak_bytes
    with monkeypatch.context() as patch:
        patch.setattr(planning, "available_bytes", lambda device: needed)
        generate(tiny)
    assert loaded[3:] == THREE  # the warm ones were let go, and these are not kept
    generate(tiny)
    assert loaded[6:] == THREE
    generate(tiny)
    assert len(loaded) == 9


def test_networks_are_freed_where_memory_runs_out(
    generate: Generate, tiny: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "MAISILib.codec.codec.Codec.decode",
            lambda *a, **k: (_ for _ in ()).throw(RuntimeError("not enough memory: you tried to allocate 1 bytes")),
        )
        with pytest.raises(OutOfMemory):
            generate(tiny)
    generate(tiny)
    assert loaded == 2 * THREE


def test_memory_that_the_process_has_already_counts_as_available() -> None:
    import psutil

    free = psutil.virtual_memory().available
    assert planning.available_bytes("cpu") > free * 0.9
    own = psutil.Process().memory_info().rss
    assert planning.available_bytes("cpu") - psutil.virtual_memory().available == pytest.approx(own, rel=0.5)


def test_provenance_is_that_of_an_ordinary_run(generate: Generate, tiny: Path) -> None:
    told = [generate(tiny)["samples"][0] for _ in range(2)]
    texts = [json.loads(Path(t["folder"], "provenance.json").read_text(encoding="utf-8")) for t in told]
    for text in texts:
        for changing in ("created", "seconds"):
            del text[changing]
    assert texts[0] == texts[1]
