from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiConvolution
from monai.inferers.inferer import SlidingWindowInferer
from torch import nn

from MAISILib.codec.codec import Codec, IntensityScale, Windows
from MAISILib.errors import OutOfMemory, RequestError


class Copying(nn.Module):
    """A perfect autoencoder without compression: the latent is the image in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        one = MaisiConvolution(
            3, 1, 1, num_splits=1, dim_split=1, print_info=False, kernel_size=1, padding=0, conv_only=True
        )
        one.conv.conv.weight.data.fill_(1)  # type: ignore[union-attr, operator]
        one.conv.conv.bias.data.zero_()  # type: ignore[union-attr, operator]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.blocks = self.decoder.blocks = nn.ModuleList([one])
        self.quant_conv_mu = self.quant_conv_log_sigma = self.post_quant_conv = nn.Identity()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.clone()  # MONAI weights the output in place


class Failing(Copying):
    """An autoencoder whose every use raises ``error``."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __getattr__(self, name: str) -> Any:
        if name in ("encoder", "post_quant_conv") and "error" in self.__dict__:
            raise self.error
        return super().__getattr__(name)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        raise self.error


def make_codec(network: nn.Module, scale: float = 1.0, **intensity: Any) -> Codec:
    return Codec(network, scale, IntensityScale(**intensity))


def test_volume_comes_back_with_its_shape_in_hu(autoencoder: Any) -> None:
    codec = make_codec(autoencoder, 1.25)
    latent = codec.encode(np.random.default_rng(0).uniform(-1200, 1500, (16, 8, 12)))
    assert latent.shape == (1, 4, 8, 4, 6)
    assert latent.dtype == torch.float32
    image = codec.decode(latent)
    assert image.shape == (16, 8, 12)
    assert image.dtype == np.float32
    assert image.min() >= -1000
    assert image.max() <= 1000


def test_hu_survive_a_perfect_autoencoder_and_are_clipped_to_the_range() -> None:
    image = np.array([-1500, -1000, -123, 0, 40, 999, 1000, 3071], np.int16).reshape(2, 2, 2)
    codec = make_codec(Copying(), scale=0.9)
    back = codec.decode(codec.encode(image)).ravel()
    np.testing.assert_allclose(back, [-1000, -1000, -123, 0, 40, 999, 1000, 1000], atol=1e-3)


def test_overshoot_of_the_network_is_clipped() -> None:
    image = make_codec(Copying()).decode(torch.tensor([-0.2, 0.25, 1.7]).view(1, 1, 1, 1, 3))
    assert image.ravel().tolist() == [-1000.0, -500.0, 1000.0]


def test_range_of_a_bundle_is_used() -> None:
    scale = IntensityScale(low=-200, high=600)
    assert scale.to_unit(np.array([-900.0, -200.0, 200.0, 700.0])).tolist() == [0.0, 0.0, 0.5, 1.0]
    assert scale.from_unit(np.array([-1.0, 0.0, 0.5, 2.0])).tolist() == [-200.0, -200.0, 200.0, 600.0]


def test_mr_intensities_are_scaled_by_percentiles_and_stay_open_above() -> None:
    array = np.arange(1001, dtype=np.float32)
    unit = IntensityScale("mr").to_unit(array)
    assert unit[0] == 0
    assert unit[995] == pytest.approx(1.0)
    assert unit[-1] == pytest.approx(1000 / 995)
    np.testing.assert_allclose(IntensityScale("mr").to_unit(array * 7 + 50), unit, atol=1e-6)
    assert unit.dtype == np.float32


def test_mr_output_is_a_thousand_times_the_networks_and_never_negative() -> None:
    image = make_codec(Copying(), kind="mr").decode(torch.tensor([-0.2, 0.25, 1.7]).view(1, 1, 1, 1, 3))
    np.testing.assert_allclose(image.ravel(), [0, 250, 1700], rtol=1e-6)


def test_constant_mr_volume_is_no_division_by_zero() -> None:
    assert np.isfinite(IntensityScale("mr").to_unit(np.full((4, 4, 4), 3.0))).all()


def test_scale_factor_multiplies_on_the_way_in_and_divides_on_the_way_out(autoencoder: Any) -> None:
    image = np.random.default_rng(0).uniform(-1000, 1000, (8, 8, 8)).astype(np.float32)
    plain, scaled = make_codec(autoencoder, 1.0), make_codec(autoencoder, 4.0)
    torch.testing.assert_close(scaled.encode(image), 4 * plain.encode(image))
    latent = torch.randn(1, 4, 4, 4, 4)
    np.testing.assert_allclose(scaled.decode(4 * latent), plain.decode(latent), atol=1e-2)


def test_encoding_draws_no_random_numbers(autoencoder: Any) -> None:
    image = np.random.default_rng(0).uniform(-1000, 1000, (8, 8, 8))
    codec = make_codec(autoencoder)
    assert torch.equal(codec.encode(image), codec.encode(image))


def test_windows_are_decoded_as_monais_published_settings_do(autoencoder: Any) -> None:
    latent = torch.randn(1, 4, 12, 9, 8)
    published = SlidingWindowInferer(roi_size=(6, 6, 6), sw_batch_size=1, mode="gaussian", overlap=0.6666)
    theirs = published(latent / 1.25, autoencoder.decode)
    codec = make_codec(autoencoder, 1.25)
    ours = codec.decode(latent, Windows((6, 6, 6), 0.6666))
    expected = theirs[0, 0].clamp(0, 1).numpy() * 2000 - 1000  # type: ignore[index,union-attr]
    np.testing.assert_allclose(ours, expected, atol=0.05)
    assert np.abs(ours - codec.decode(latent)).max() > 1  # windows have their own statistics


def test_default_windows_are_the_published_ones() -> None:
    assert Windows() == Windows(size=(48, 48, 48), overlap=0.6666)


@pytest.mark.parametrize("size", [(8, 6, 4), (50, 50, 50), (8, 6, 100)])
def test_window_that_covers_the_latent_is_no_window(autoencoder: Any, size: tuple[int, int, int]) -> None:
    latent = torch.randn(1, 4, 8, 6, 4)
    windowed = make_codec(autoencoder).decode(latent, Windows(size))
    np.testing.assert_array_equal(windowed, make_codec(autoencoder).decode(latent))


def test_blending_leaves_no_seam() -> None:
    """Where every window says the same, the blend says it too."""
    latent = torch.rand(1, 1, 12, 11, 10)
    image = make_codec(Copying()).decode(latent, Windows((5, 5, 5), 0.5))
    np.testing.assert_allclose(image, latent[0, 0].numpy() * 2000 - 1000, atol=0.01)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6666, 0.95])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((12, 12, 12), (6, 6, 6)), ((13, 7, 6), (6, 6, 6)), ((9, 5, 20), (4, 8, 3)), ((7, 7, 7), (6, 6, 6))],
)
def test_progress_counts_every_window_and_ends_at_the_total(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float
) -> None:
    calls: list[tuple[int, int]] = []
    make_codec(Copying()).decode(
        torch.rand(1, 1, *shape), Windows(size, overlap), on_tile=lambda done, total: calls.append((done, total))
    )
    total = len(calls)
    assert total > 1
    assert calls == [(n, total) for n in range(1, total + 1)]


@pytest.mark.parametrize(
    ("size", "overlap"), [((4, 4, 4), 1.0), ((4, 4, 4), -0.1), ((0, 4, 4), 0.5), ((4, -2, 4), 0.5)]
)
def test_impossible_windows_are_refused_with_their_values(size: tuple[int, int, int], overlap: float) -> None:
    with pytest.raises(RequestError) as caught:
        Windows(size, overlap)
    assert str(size) in str(caught.value)
    assert str(overlap) in str(caught.value)


def test_flat_latent_with_no_more_voxels_than_a_window_is_decoded_whole() -> None:
    assert Windows((48, 48, 48)).count((64, 64, 16)) == 1
    assert Windows((48, 48, 48)).count((64, 64, 64)) == 8


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate"),
        RuntimeError("MPS backend out of memory"),
    ],
)
@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda codec: codec.encode(np.zeros((8, 8, 4))), "encode a volume of 8×8×4"),
        (lambda codec: codec.decode(torch.zeros(1, 1, 6, 6, 3)), "decode a volume of 6×6×3"),
        (lambda codec: codec.decode(torch.zeros(1, 1, 6, 6, 3), Windows((3, 3, 3))), "decode a volume of 6×6×3"),
    ],
)
def test_lack_of_memory_says_what_to_do(error: BaseException, work: Callable[[Codec], Any], said: str) -> None:
    with pytest.raises(OutOfMemory, match=f"{said}.*smaller size") as caught:
        work(make_codec(Failing(error)))
    assert caught.value.__cause__ is error


def test_other_errors_of_the_network_are_not_dressed_up_as_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="size of tensor") as caught:
        make_codec(Failing(RuntimeError("size of tensor a must match"))).decode(torch.zeros(1, 1, 6, 6, 3))
    assert not isinstance(caught.value, OutOfMemory)
