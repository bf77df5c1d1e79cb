"""Every way through an autoencoder gives the whole volume's result, for every layout that MONAI builds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.bundles.networks import build_network
from MAISILib.codec.codec import Codec, IntensityScale, Windows
from MAISILib.codec.convolutions import Moments
from MAISILib.codec.layers import decoder_layers, encoder_layers
from MAISILib.codec.strategies import Strategy, Walk, recompute_cuts
from MAISILib.codec.streaming import stream
from MAISILib.errors import BundleError, Cancelled, OutOfMemory, RequestError
from Testing.tiny_bundle import tiny_definitions

LAYOUTS: dict[str, dict[str, Any]] = {
    "two levels, one block": {"num_channels": [8, 16], "num_res_blocks": [1, 1], "attention_levels": [False] * 2},
    "three levels": {"num_channels": [8, 16, 16], "num_res_blocks": [2, 1, 2], "attention_levels": [False] * 3},
    "one level": {"num_channels": [8], "num_res_blocks": [1], "attention_levels": [False]},
    "transposed convolutions, many classes": {"use_convtranspose": True, "in_channels": 3, "out_channels": 5},
    "attention in the middle": {"with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True},
    "attention on the finest level": {"attention_levels": [True, False]},
}
#: Latents: even, odd, and no axis like another.
SHAPES = [(4, 4, 4), (5, 3, 6)]
#: Tiles of images: slabs that divide and do not, cubes that do neither, larger than everything.
TILES = [(4, 99, 99), (3, 99, 99), (5, 7, 3), (99, 99, 99)]


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=list(LAYOUTS))
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    network: Any = build_network({**tiny_definitions()["autoencoder"], **request.param})
    for parameter in network.parameters():  # biases and norms start at 0 and 1, which would hide mistakes
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network.requires_grad_(False)


def strategies(layers: Any, shape: Any) -> list[Strategy]:
    cuts = recompute_cuts(layers, shape)
    return [
        Strategy(),
        *(Strategy("layers", tile) for tile in TILES),
        *(Strategy("layers", TILES[1], storage=storage) for storage in ("host", "file")),
        *(Strategy("recompute", tile) for tile in TILES),
        *(Strategy("recompute", TILES[1], kept) for kept in cuts[1 :: max(1, len(cuts) // 4)]),
        *(Strategy("recompute", TILES[2], cuts[-1], storage) for storage in ("host", "file")),
        *(Strategy("recompute", tile, recomputes_upsampled=True) for tile in TILES),
    ]


def test_without_onednn_the_result_is_the_same(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("MAISILib.codec.convolutions._has_onednn", lambda x, module: False)
    layers, latent = decoder_layers(network), torch.randn(1, 4, *SHAPES[1])
    made = stream(layers, latent, Strategy("recompute", TILES[2]))
    assert (made - network.decoder(latent)).abs().max() < 1e-5 * made.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_in_tiles_equals_decoding_the_whole_volume(network: Any, shape: tuple[int, int, int]) -> None:
    layers, latent = decoder_layers(network), torch.randn(1, 4, *shape)
    expected = network.decoder(latent)
    for strategy in strategies(layers, shape):
        torch.testing.assert_close(stream(layers, latent, strategy), expected, atol=1e-4, rtol=0, msg=str(strategy))


@pytest.mark.parametrize("shape", SHAPES)
def test_encoding_in_tiles_equals_encoding_the_whole_volume(network: Any, shape: tuple[int, int, int]) -> None:
    layers = encoder_layers(network)
    factor = 2 ** sum(layer.kind == "down" for layer in layers)
    image = torch.randn(1, layers[0].in_channels, *(n * factor for n in shape))
    expected = network.encoder(image)
    for strategy in strategies(layers, image.shape[2:]):
        torch.testing.assert_close(stream(layers, image, strategy), expected, atol=1e-4, rtol=0, msg=str(strategy))


def test_channels_of_little_spread_survive_their_statistics() -> None:
    """Squares summed as they are would drown their spread in rounding."""
    values = 100 + 0.01 * torch.randn(6, 5, 4, 4)
    moments = Moments(4)
    for tile in values.split(4):
        moments.add(tile)
    factor, offset = moments.affine(torch.nn.GroupNorm(4, 4), "cpu")
    expected = torch.nn.functional.group_norm(values.double().permute(3, 0, 1, 2)[None], 4)[0].permute(1, 2, 3, 0)
    torch.testing.assert_close(values * factor + offset, expected.float(), atol=3e-3, rtol=0)


def make_codec(autoencoder: Any) -> Codec:
    return Codec(autoencoder, 1.25, IntensityScale())


def test_images_and_latents_agree_to_a_part_of_a_hu(autoencoder: Any) -> None:
    codec, tiled = make_codec(autoencoder), Strategy("recompute", (5, 8, 8))
    image = np.random.default_rng(0).uniform(-1200, 1500, (16, 12, 20)).astype(np.float32)
    for ours, whole in zip(codec.posterior(image, how=tiled), codec.posterior(image), strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-4, rtol=0)
    theirs = autoencoder.encode(torch.from_numpy(IntensityScale().to_unit(image))[None, None])
    torch.testing.assert_close(codec.posterior(image), theirs, atol=1e-4, rtol=0)
    latent = codec.encode(image)
    np.testing.assert_allclose(codec.decode(latent, tiled), codec.decode(latent), atol=0.5)
    np.testing.assert_allclose(codec.decode(codec.encode(image, tiled)), codec.decode(latent), atol=0.5)
    expected = autoencoder.decode(latent / 1.25)[0, 0].clamp(0, 1).numpy() * 2000 - 1000
    np.testing.assert_allclose(codec.decode(latent), expected, atol=0.5)


@pytest.mark.parametrize("strategy", [Strategy(), Strategy("layers", (4, 8, 8)), Strategy("recompute", (4, 8, 8))])
def test_progress_counts_every_tile_and_ends_at_the_total(autoencoder: Any, strategy: Strategy) -> None:
    calls: list[tuple[int, int]] = []
    make_codec(autoencoder).decode(
        torch.randn(1, 4, 6, 5, 4), strategy, on_tile=lambda done, total: calls.append((done, total))
    )
    assert calls == [(n, len(calls)) for n in range(1, len(calls) + 1)]


@pytest.mark.parametrize(
    ("way", "how"),
    [
        ("encode", Strategy("layers", (4, 8, 8), storage="file")),
        ("decode", Strategy("layers", (4, 8, 8), storage="file")),
        ("decode", Windows((3, 3, 3), 0.5)),
    ],
    ids=str,
)
def test_cancel_between_tiles_stops_the_work(autoencoder: Any, way: str, how: Any) -> None:
    inputs = {"encode": np.zeros((12, 8, 8)), "decode": torch.randn(1, 4, 6, 5, 4)}
    seen: list[int] = []

    def cancel(done: int, total: int) -> None:
        seen.append(done)
        if done == 3:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        getattr(make_codec(autoencoder), way)(inputs[way], how, on_tile=cancel)
    assert seen == [1, 2, 3]


def test_a_file_that_the_disk_has_no_room_for_is_refused(autoencoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 100, 0))  # type: ignore[attr-defined]
    with pytest.raises(OutOfMemory, match=r"temporary file needs.*TMPDIR"):
        make_codec(autoencoder).decode(torch.randn(1, 4, 4, 4, 4), Strategy("layers", (4, 4, 4), storage="file"))


def test_impossible_strategies_are_refused(autoencoder: Any) -> None:
    with pytest.raises(RequestError, match="tile"):
        Strategy("layers")
    with pytest.raises(RequestError, match="tile"):
        Strategy("recompute", (8, 0, 8))
    with pytest.raises(RequestError, match=r"kept=\(1,\)"):  # the first convolution of a block, not the block's input
        Walk(decoder_layers(autoencoder), (4, 4, 4), Strategy("recompute", (8, 8, 8), (1,)))


def test_blocks_of_other_autoencoders_are_named(autoencoder: Any) -> None:
    class Other(torch.nn.Module):
        decoder = torch.nn.Module()

    Other.decoder.blocks = torch.nn.ModuleList([torch.nn.LSTM(1, 1)])
    with pytest.raises(BundleError, match="LSTM"):
        decoder_layers(Other())
