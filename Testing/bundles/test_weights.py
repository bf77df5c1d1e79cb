from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.bundles import weights
from MAISILib.bundles.networks import build_network
from MAISILib.errors import BundleError
from Testing.tiny_bundle import tiny_definitions, tiny_states

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize(
    ("content", "scale"),
    [
        (STATE, None),
        ({"unet_state_dict": STATE}, None),
        ({"unet_state_dict": STATE, "scale_factor": torch.tensor(1.5), "epoch": 3, "optimizer": {"x": [1]}}, 1.5),
        ({"controlnet_state_dict": STATE, "loss": np.float64(0.25)}, None),
        ({"unet_state_dict": STATE, "scale_factor": np.float32(1.5)}, 1.5),
        ({"module." + name: value for name, value in STATE.items()}, None),
    ],
)
def test_published_layouts_are_read(tmp_path: Path, content: dict[str, Any], scale: float | None) -> None:
    torch.save(content, tmp_path / "net.pt")
    checkpoint = weights.read_checkpoint(tmp_path / "net.pt", "torch")
    assert set(checkpoint.weights) == set(STATE)
    assert torch.equal(checkpoint.weights["a.weight"], STATE["a.weight"])
    assert checkpoint.scale_factor == scale


def test_checkpoint_of_an_old_torch_is_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    assert set(weights.read_state_dict(tmp_path / "net.pt", "torch")) == set(STATE)


def test_number_pickled_by_numpy_1_is_read(tmp_path: Path) -> None:
    torch.save({"unet_state_dict": STATE, "loss": np.float64(0.25)}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for member in new.infolist():
            data = new.read(member)
            old.writestr(member, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert set(weights.read_state_dict(tmp_path / "old.pt", "torch")) == set(STATE)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "ran"
    content = {**STATE, "x": Bomb(mark)}
    torch.save(content, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(mark)))
    for name in ("bomb.pt", "plain.pt"):
        with pytest.raises(BundleError, match=r"could run code .* nothing was run|not a complete torch checkpoint"):
            weights.read_checkpoint(tmp_path / name, "torch")
    with pytest.raises(BundleError, match=r"posix\.system|nt\.system"):
        weights.read_checkpoint(tmp_path / "bomb.pt", "torch")
    assert not mark.exists()


@pytest.mark.parametrize("format", ["torch", "safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>Login</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"not weights at all" * 10, "not a complete"),
        (b"PK\x03\x04" + b"\0" * 100, "not a complete"),
        (b"\x80\x02}q\x00.", "not a complete|holds"),
    ],
)
def test_file_that_is_no_checkpoint_is_named(tmp_path: Path, format: Any, content: bytes, said: str) -> None:
    (tmp_path / "net.bin").write_bytes(content)
    with pytest.raises(BundleError, match=said) as caught:
        weights.read_checkpoint(tmp_path / "net.bin", format)
    assert "net.bin" in str(caught.value)


@pytest.mark.parametrize("format", ["torch", "safetensors"])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path: Path, format: Any, part: float) -> None:
    path = tmp_path / "net.bin"
    state = {name: value.repeat(50, *[1] * (value.ndim - 1)) for name, value in STATE.items()}
    torch.save(state, path) if format == "torch" else weights.save_safetensors(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(BundleError, match="not a complete"):
        weights.read_checkpoint(path, format)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"unet_state_dict": {"a": "text"}}])
def test_plain_data_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(BundleError, match=r"net\.pt"):
        weights.read_checkpoint(tmp_path / "net.pt", "torch")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), "big", torch.ones(3)])
def test_senseless_scale_factor_is_refused(tmp_path: Path, scale: Any) -> None:
    torch.save({"unet_state_dict": STATE, "scale_factor": scale}, tmp_path / "net.pt")
    with pytest.raises(BundleError, match="scale_factor"):
        weights.read_checkpoint(tmp_path / "net.pt", "torch")


def test_every_difference_is_listed() -> None:
    network = torch.nn.ModuleDict({str(k): torch.nn.Linear(2, 2) for k in range(15)})
    state = dict(network.state_dict())
    state["0.weight"] = torch.zeros(3, 2)
    state["1.weight"] = torch.zeros(2, 2, dtype=torch.int8)
    for k in range(2, 14):
        del state[f"{k}.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(BundleError) as caught:
        weights.check_and_load(network, state, "net.pt")
    said = str(caught.value)
    assert "12 missing: 2.bias, " in said
    assert "and 2 more" in said
    assert "1 unexpected: extra" in said
    assert "0.weight (3, 2) instead of (2, 2)" in said
    assert "1 not floating-point: 1.weight" in said


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(bad: float, tmp_path: Path) -> None:
    state = {"weight": torch.tensor([[bad, 1.0]]), "bias": torch.zeros(1)}
    with pytest.raises(BundleError, match="1 weights hold NaN or infinity: weight"):
        weights.check_and_load(torch.nn.Linear(2, 1), state, "net.pt")
    with pytest.raises(BundleError, match="NaN"):
        weights.save_safetensors(state, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_become_frozen_float32_copies(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        network = torch.nn.Linear(3, 2)
    state = {"weight": torch.full((2, 3), 0.5, dtype=dtype), "bias": torch.zeros(2, dtype=dtype)}
    weights.check_and_load(network, state, "net.pt")
    state["weight"].zero_()
    assert network.weight.dtype == torch.float32
    assert float(network.weight.sum()) == 3.0
    assert not network.weight.requires_grad
    assert not network.training


def test_weight_beyond_half_precision_stays_exact(tmp_path: Path) -> None:
    path = weights.save_safetensors(
        {"big": torch.tensor([1e6]), "small": torch.tensor([0.5])}, tmp_path / "n.safetensors"
    )
    state = weights.read_state_dict(path, "safetensors")
    assert state["big"].dtype == torch.float32
    assert float(state["big"]) == 1e6
    assert state["small"].dtype == torch.float16


def test_tied_and_transposed_weights_are_saved(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    path = weights.save_safetensors(
        {"a": matrix, "b": matrix, "c": matrix.T}, tmp_path / "n.safetensors", scale_factor=2.0
    )
    checkpoint = weights.read_checkpoint(path, "safetensors")
    assert torch.equal(checkpoint.weights["c"].float(), matrix.T)
    assert checkpoint.scale_factor == 2.0


def test_controlnet_takes_missing_weights_from_the_unet_only_where_they_match() -> None:
    definitions = tiny_definitions()
    states = tiny_states(definitions)
    expected = build_network(definitions["controlnet"], device="meta").state_dict()
    part = {n: v for n, v in states["controlnet"].items() if not n.startswith(("conv_in", "controlnet_mid_block"))}
    fitted, report = weights.fit_published(expected, part, states["diffusion"])
    assert sorted(report.filled) == sorted(n for n in expected if n.startswith("conv_in"))
    assert torch.equal(fitted[report.filled[0]], states["diffusion"][report.filled[0]])
    with pytest.raises(BundleError, match="controlnet_mid_block"):
        weights.check_weights(expected, fitted, "controlnet.pt")


def test_output_projection_that_training_never_used_is_left_out() -> None:
    definition = tiny_definitions("ddpm")["diffusion"]
    with_projection = tiny_states({"diffusion": {**definition, "include_fc": True}})["diffusion"]
    expected = build_network(definition, device="meta").state_dict()
    fitted, report = weights.fit_published(expected, {**with_projection, "other": torch.zeros(1)})
    assert report.dropped
    assert all(name.endswith(("attn.out_proj.weight", "attn.out_proj.bias")) for name in report.dropped)
    with pytest.raises(BundleError, match="1 unexpected: other"):
        weights.check_weights(expected, fitted, "diffusion.pt")


def test_meta_network_equals_one_built_on_the_cpu() -> None:
    definition = tiny_definitions()["diffusion"]
    built, meta = build_network(definition), build_network(definition, device="meta")
    weights.check_and_load(meta, built.state_dict(), "copy")
    x, t = torch.randn(1, 4, 8, 8, 8), torch.tensor([500.0])
    given = {"spacing_tensor": torch.ones(1, 3), "class_labels": torch.tensor([1])}
    with torch.no_grad():
        assert torch.equal(built(x, t, **given), meta(x, t, **given))
