"""Images from networks in memory: what a training looks like while it runs, and before and after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from MAISILib.anatomy.masks import REGIONS, regions_of
from MAISILib.codec.codec import Codec, IntensityScale
from MAISILib.diffusion.networks import Conditions
from MAISILib.diffusion.sampler import Denoiser, sample_latent
from MAISILib.diffusion.schedules import schedule_of
from MAISILib.diffusion.solvers import make_solver
from MAISILib.files.atomic import atomic_path
from MAISILib.files.preview import draw_preview
from MAISILib.generation.plan import diffusion_precision
from MAISILib.training.denoising import mask_bits
from MAISILib.volumes import LabelMap, Volume

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle


class Renderer:
    """Makes images of masks with a bundle's UNet and autoencoder and any ControlNet.

    Args:
        bundle: Whose networks, schedule and intensities are used.
        unet: Its UNet, loaded; it is moved to the device.
        device: Where.
    """

    def __init__(self, bundle: Bundle, unet: Any, device: str = "cpu") -> None:
        self._bundle, self._unet, self._device = bundle, unet.to(device), device
        scale = IntensityScale(**bundle.manifest.intensity.model_dump())
        self._codec = Codec(bundle.load("autoencoder", device), bundle.scale_factor(), scale, device=device)

    @torch.no_grad()
    def image(
        self,
        controlnet: Any,
        mask: LabelMap,
        *,
        steps: int,
        seed: int,
        check: Callable[[], None] = lambda: None,
    ) -> Volume:
        """The image of a mask; the same mask, steps and seed start from the same noise.

        Args:
            controlnet: In evaluation mode, on the renderer's device.
            mask: ``(X, Y, Z)`` on a grid that the bundle's networks take.
            steps: Solver steps, few: DDPM models are sampled by DDIM.
            seed: Of the noise.
            check: Called after each step; raise in it to cancel.
        """
        manifest = self._bundle.manifest
        kind = manifest.schedule.kind
        denoiser = Denoiser(
            self._unet,
            controlnet,
            Conditions(next(iter(manifest.modality.values())), mask.spacing, *self._regions(mask)),
            mask_bits(mask.array)[None],
            device=self._device,
            autocast=diffusion_precision(self._device),
        )
        x, y, z = (n // self._bundle.compression for n in mask.array.shape)
        latent = sample_latent(
            denoiser,
            schedule_of(manifest.schedule),
            make_solver("ddim" if kind == "ddpm" else None, kind),
            (self._bundle.latent_channels, x, y, z),
            steps=min(steps, manifest.schedule.train_timesteps),
            seed=seed,
            device=self._device,
            on_step=lambda done, state, clean: check(),
        )
        array, is_ct = self._codec.decode(latent), manifest.intensity.kind == "ct"
        if is_ct:
            array = np.where(mask.array > 0, array, manifest.intensity.low)
        return Volume(array, mask.affine, "HU" if is_ct else "arbitrary")

    def _regions(self, mask: LabelMap) -> tuple[int | None, int | None]:
        if not self._bundle.manifest.body_region_input:
            return None, None
        found = regions_of(mask)  # a mask that shows none is taken to reach from head to lower, as in generating
        return (0, len(REGIONS) - 1) if found is None else (REGIONS.index(found.top), REGIONS.index(found.bottom))


def difference_of(
    before: Volume, after: Volume, mask: LabelMap, focus: tuple[int, ...], dilation: int = 2
) -> dict[str, float]:
    """How two images of the same patient and noise differ in the focus labels, and outside of them.

    Args:
        before: Of the parent, ``(X, Y, Z)``.
        after: Of the fine-tuned model.
        mask: The mask of ``after``; has a focus label.
        focus: Labels that the training was about.
        dilation: Voxels by which the focus grows before the rest of the body counts as outside.

    Returns:
        In the images' units: ``before_inside`` and ``after_inside`` (means in the focus), ``inside_change`` (their
        difference) and, where the body is larger than the grown focus, ``outside_change`` (mean absolute difference in
        the rest of the body).
    """
    from scipy import ndimage

    inside = np.isin(mask.array, focus)
    outside = (mask.array > 0) & ~ndimage.binary_dilation(inside, iterations=dilation)
    a, b = before.array.astype(np.float64), after.array.astype(np.float64)
    figures = {
        "before_inside": float(a[inside].mean()),
        "after_inside": float(b[inside].mean()),
        "inside_change": float((b - a)[inside].mean()),
    }
    return figures | ({"outside_change": float(np.abs(b - a)[outside].mean())} if outside.any() else {})


def write_comparison(path: Path, rows: dict[str, Volume], mask: LabelMap, focus: tuple[int, ...]) -> None:
    """Writes images of the same patient one above the other as PNG, through the focus labels and in one window.

    Args:
        path: ``.png``; missing folders are made.
        rows: Title → image, from the top, all on the grid of the mask.
        mask: Drawn below each of them.
        focus: Labels that the planes go through.

    Raises:
        OutputError: The file cannot be written.
    """
    from PIL import Image

    window = None  # the CT's own
    if any(image.units != "HU" for image in rows.values()):
        low, high = np.percentile(np.concatenate([image.array.ravel() for image in rows.values()]), (1, 99.5))
        window = float(low), float(max(high, low + 1e-6))
    parts = [draw_preview(image, mask, title, window, focus) for title, image in rows.items()]
    picture = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
