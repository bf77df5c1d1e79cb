"""Which times the sampler visits, and how far it goes at each.

Two kinds: the straight path of rectified flow and the variance-preserving chain of DDPM; two modes: ``exact``, whose
steps add up to the whole way, and ``upstream``, which repeats MONAI 1.6's schedulers, rounding included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from MAISILib.errors import RequestError

if TYPE_CHECKING:
    from MAISILib.bundles.manifest import PredictionType, ScheduleEntry

Mode = Literal["exact", "upstream"]


@dataclass(frozen=True)
class FlowStep:
    """One step along the flow: evaluate the velocity at ``time`` (training timesteps), go on by ``delta`` (of 1).

    The state there is ``alpha·x₀ + sigma·noise`` with ``sigma = time/T``.
    """

    time: float
    delta: float
    sigma: float

    @property
    def alpha(self) -> float:
        """The part of the image, ``1 − sigma``."""
        return 1.0 - self.sigma

    def clean(self, x: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The image that a state and the network's velocity point to."""
        return x + self.sigma * velocity


@dataclass(frozen=True)
class DdpmStep:
    """One step of the reverse chain, from ``time`` to the time before it.

    ``x ← from_clean·x₀ + from_noisy·x + deviation·noise``. Networks predict the noise ε or, where
    ``predicts_velocity``, ``v = alpha·ε − sigma·x₀``.
    """

    time: float
    alpha: float
    sigma: float
    from_clean: float
    from_noisy: float
    deviation: float
    predicts_velocity: bool = False

    def clean(self, x: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """The image that a state and the network's prediction point to."""
        if self.predicts_velocity:
            return self.alpha * x - self.sigma * predicted
        return (x - self.sigma * predicted) / self.alpha

    def noise(self, x: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """The noise in a state, by the network's prediction."""
        return self.sigma * x + self.alpha * predicted if self.predicts_velocity else predicted


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow (Liu et al. 2022, arXiv:2209.03003): ``x_t = (1 − t/T)·x₀ + t/T·noise``, velocity ``x₀ − noise``.

    Args:
        train_timesteps: T, the time of pure noise.
        use_timestep_transform: Bend the uniform grid towards noise for large latents
            (Esser et al. 2024, arXiv:2403.03206, resolution-dependent shift).
        base_latent_voxels: Latent size at which the bend vanishes.
    """

    train_timesteps: int = 1000
    use_timestep_transform: bool = True
    base_latent_voxels: int = 32**3

    def bend(self, time: float, latent_voxels: int) -> float:
        """``T·r·u / (1 + (r − 1)·u)`` with ``u = time/T`` and ``r = (latent voxels / base)^(1/3)``."""
        if not self.use_timestep_transform:
            return time
        ratio = (latent_voxels / self.base_latent_voxels) ** (1.0 / 3)
        part = time / self.train_timesteps
        return ratio * part / (1 + (ratio - 1) * part) * self.train_timesteps

    def steps(self, count: int, latent_voxels: int, mode: Mode = "exact") -> list[FlowStep]:
        """The steps from noise to image.

        Args:
            count: Number of steps, 1 to ``train_timesteps``.
            latent_voxels: Voxels of the latent (one channel).
            mode: ``upstream`` rounds times to float16 and ends of steps to integers, as MONAI does, so that its 30
                steps go about 0.9 % too far.

        Raises:
            RequestError: ``count`` is out of range.
        """
        _check_count(count, self.train_timesteps)
        total = self.train_timesteps
        times = [self.bend((1.0 - i / count) * total, latent_voxels) for i in range(count)]
        if mode == "exact":
            ends = [*times[1:], 0.0]
            return [FlowStep(t, (t - after) / total, t / total) for t, after in zip(times, ends, strict=True)]
        rounded = np.asarray(times).astype(np.float16)
        following = [*(int(t) for t in rounded[1:]), 0]
        return [
            FlowStep(float(t), float(t - np.float16(after)) / total, float(t) / total)
            for t, after in zip(rounded, following, strict=True)
        ]

    def noisy(self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Training input at ``times`` ``(N,)`` between clean and noise latents ``(N, C, X, Y, Z)``."""
        part = (times.float() / self.train_timesteps).view(-1, 1, 1, 1, 1)
        return (1 - part) * clean + part * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """What the network shall predict for :meth:`noisy`: the velocity, the same at all times."""
        return clean - noise


@dataclass(frozen=True)
class DdpmSchedule:
    """DDPM (Ho et al. 2020, arXiv:2006.11239) with the posterior's small variance.

    Args:
        train_timesteps: Length T of the training chain.
        beta_start: Noise variance of its first step.
        beta_end: Noise variance of its last step.
        beta_schedule: ``scaled_linear_beta`` (linear in the square root) or ``linear_beta``.
        prediction_type: What the network predicts: the noise (``epsilon``), or ``v_prediction`` (Salimans and Ho 2022,
            arXiv:2202.00512), from which the image follows without a division by next to nothing near pure noise.
    """

    train_timesteps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    beta_schedule: str = "scaled_linear_beta"
    prediction_type: PredictionType = "epsilon"

    @property
    def predicts_velocity(self) -> bool:
        """Whether the network predicts ``v`` and not the noise."""
        return self.prediction_type == "v_prediction"

    def betas(self) -> torch.Tensor:
        """Noise variances ``(T,)`` in float32."""
        if self.beta_schedule == "scaled_linear_beta":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_timesteps) ** 2
        if self.beta_schedule == "linear_beta":
            return torch.linspace(self.beta_start, self.beta_end, self.train_timesteps)
        raise RequestError(f"Unknown beta schedule {self.beta_schedule!r}; known: scaled_linear_beta, linear_beta.")

    def signal(self) -> torch.Tensor:
        """Cumulated signal power ``ᾱ_t``, ``(T,)`` in float32."""
        return torch.cumprod(1.0 - self.betas(), dim=0)

    def steps(self, count: int, latent_voxels: int, mode: Mode = "exact") -> list[DdpmStep]:
        """The steps from noise to image.

        With fewer steps than the training chain has, ``exact`` steps from each visited time to the next visited one;
        ``upstream`` takes MONAI's step to the time just before, whatever is visited next. ``latent_voxels`` is unused.

        Raises:
            RequestError: ``count`` is out of range.
        """
        _check_count(count, self.train_timesteps)
        times = torch.linspace(self.train_timesteps - 1, 0, count).round().long().tolist()
        signal = self.signal().double() if mode == "exact" else self.signal()
        one = torch.ones((), dtype=signal.dtype)
        steps = []
        for t, following in zip(times, [*times[1:], -1], strict=True):
            before = following if mode == "exact" else t - 1
            now, after = signal[t], signal[before] if before >= 0 else one
            alpha_step = now / after if mode == "exact" else 1.0 - self.betas()[t]
            beta_step = 1 - alpha_step if mode == "exact" else self.betas()[t]
            variance = ((1 - after) / (1 - now) * beta_step).clamp(min=1e-20)
            steps.append(
                DdpmStep(
                    time=float(t),
                    alpha=float(now**0.5),
                    sigma=float((1 - now) ** 0.5),
                    from_clean=float(after**0.5 * beta_step / (1 - now)),
                    from_noisy=float(alpha_step**0.5 * (1 - after) / (1 - now)),
                    deviation=float(variance**0.5) if before >= 0 else 0.0,
                    predicts_velocity=self.predicts_velocity,
                )
            )
        return steps

    def noisy(self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Training input at integer ``times`` ``(N,)`` between clean and noise latents ``(N, C, X, Y, Z)``."""
        alpha, sigma = self._parts(clean, times)
        return alpha * clean + sigma * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """What the network shall predict for :meth:`noisy`."""
        if not self.predicts_velocity:
            return noise
        alpha, sigma = self._parts(clean, times)
        return alpha * noise - sigma * clean

    def _parts(self, clean: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        signal = self.signal().to(clean.device)[times.long()].view(-1, 1, 1, 1, 1)
        return signal**0.5, (1 - signal) ** 0.5


def _check_count(count: int, longest: int) -> None:
    if not 1 <= count <= longest:
        raise RequestError(f"{count} steps are not possible: give 1 to {longest}, the length of the training schedule.")


Schedule = FlowSchedule | DdpmSchedule


def schedule_of(entry: ScheduleEntry) -> Schedule:
    """The schedule that a manifest describes."""
    if entry.kind == "rflow":
        return FlowSchedule(entry.train_timesteps, entry.use_timestep_transform, entry.base_latent_voxels)
    betas = entry.beta_start, entry.beta_end, entry.beta_schedule
    return DdpmSchedule(entry.train_timesteps, *betas, entry.prediction_type)
