"""Images from networks in memory: what a training looks like while it runs, and before and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from MAISILib.anatomy.masks import label_bits
from MAISILib.codec.codec import Codec, IntensityScale
from MAISILib.diffusion.networks import Conditions
from MAISILib.diffusion.sampler import Denoiser, sample_latent
from MAISILib.diffusion.solvers import make_solver
from MAISILib.training.denoising import make_schedule
from MAISILib.volumes import LabelMap, Volume

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle


class Renderer:
    """Makes images of masks with a bundle's UNet and autoencoder and any ControlNet.

    Args:
        bundle: Whose networks, schedule and intensities are used.
        unet: Its UNet, loaded.
        device: Where.
    """

    def __init__(self, bundle: Bundle, unet: Any, device: str = "cpu") -> None:
        self._bundle, self._unet, self._device = bundle, unet.to(device), device
        intensity = bundle.manifest.intensity
        scale = IntensityScale(intensity.kind, intensity.low, intensity.high)
        self._codec = Codec(bundle.load("autoencoder", device), bundle.scale_factor(), scale, device=device)

    def image(self, controlnet: Any, mask: LabelMap, *, steps: int, seed: int) -> Volume:
        """The image of a mask; the same mask, steps and seed start from the same noise.

        Args:
            controlnet: In evaluation mode, on the renderer's device.
            mask: ``(X, Y, Z)`` on a grid that the bundle's networks take.
            steps: Solver steps.
            seed: Of the noise.
        """
        manifest = self._bundle.manifest
        kind = manifest.schedule.kind
        conditions = Conditions(next(iter(manifest.modality.values())), mask.spacing)
        bits = torch.from_numpy(np.ascontiguousarray(label_bits(mask.array)))[None].float()
        denoiser = Denoiser(self._unet, controlnet, conditions, bits, device=self._device)
        shape = (self._bundle.latent_channels, *(n // self._bundle.compression for n in mask.array.shape))
        latent = sample_latent(
            denoiser,
            make_schedule(manifest.schedule.model_dump()),
            make_solver(None, kind),
            shape,  # type: ignore[arg-type]
            steps=steps,
            seed=seed,
            device=self._device,
        )
        array = self._codec.decode(latent)
        if manifest.intensity.kind == "ct":
            array = np.where(mask.array > 0, array, manifest.intensity.low)
        return Volume(array, mask.affine, "HU" if manifest.intensity.kind == "ct" else "arbitrary")


def difference_of(
    before: Volume, after: Volume, mask: LabelMap, focus: tuple[int, ...], dilation: int = 2
) -> dict[str, float]:
    """How two images of the same mask and noise differ in its focus labels, and outside of them.

    Args:
        before: Of the parent, ``(X, Y, Z)``.
        after: Of the fine-tuned model.
        mask: The mask of both.
        focus: Labels that the training was about.
        dilation: Voxels by which the focus grows before the rest of the body counts as outside.

    Returns:
        ``before_inside`` and ``after_inside`` (means in the focus), ``inside_change`` (their difference) and
        ``outside_change`` (mean absolute difference in the rest of the body), in the images' units.
    """
    from scipy import ndimage

    inside = np.isin(mask.array, focus)
    outside = (mask.array > 0) & ~ndimage.binary_dilation(inside, iterations=dilation)
    a, b = before.array.astype(np.float64), after.array.astype(np.float64)
    return {
        "before_inside": float(a[inside].mean()),
        "after_inside": float(b[inside].mean()),
        "inside_change": float((b - a)[inside].mean()),
        "outside_change": float(np.abs(b - a)[outside].mean()),
    }
