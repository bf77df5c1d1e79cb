"""Data of which everything is known: a mixture of Gaussians, its best networks, and where its paths end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mixture:
    """Independent voxels, each from one of several Gaussians. All is done in float64.

    Args:
        weights: Sum to 1.
        means: Of the Gaussians.
        deviations: Of the Gaussians.
    """

    weights: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def _parts(self, alpha: float, sigma: float) -> list[tuple[float, float, float, float]]:
        """Weight, mean and deviation of each Gaussian in ``alpha·x₀ + sigma·noise``, and its own deviation."""
        parts = zip(self.weights, self.means, self.deviations, strict=True)
        return [(w, alpha * m, (alpha**2 * s**2 + sigma**2) ** 0.5, s) for w, m, s in parts]

    def clean(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """``E[x₀ | x]``, what a perfect network points to."""
        total, weighted = torch.zeros_like(x), torch.zeros_like(x)
        for (w, shifted, spread, s), mean in zip(self._parts(alpha, sigma), self.means, strict=True):
            share = w / spread * torch.exp(-(((x - shifted) / spread) ** 2) / 2)
            total += share
            weighted += share * (mean + alpha * s**2 / spread**2 * (x - shifted))
        return weighted / total

    def velocity(self, x: torch.Tensor, time: float) -> torch.Tensor:
        """Of rectified flow, ``E[x₀ − noise | x]``; at time 0 its limit."""
        sigma = time / 1000
        return self.clean(x, 1.0, 0.0) if sigma == 0 else (self.clean(x, 1 - sigma, sigma) - x) / sigma

    def noise(self, signal: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
        """The network of a DDPM whose cumulated signal power is ``signal`` ``(T,)``: ``E[noise | x]``."""

        def predict(x: torch.Tensor, time: float) -> torch.Tensor:
            power = float(signal[int(time)])
            alpha, sigma = power**0.5, (1 - power) ** 0.5
            return (x - alpha * self.clean(x, alpha, sigma)) / sigma

        return predict

    def carried(
        self, x: torch.Tensor, start: tuple[float, float], end: tuple[float, float] = (1.0, 0.0)
    ) -> torch.Tensor:
        """Where the probability-flow ODE carries ``x`` from one ``(alpha, sigma)`` to another.

        Along a line, the flow keeps the order of points, so each keeps its quantile: the end is the quantile of the
        distribution there, found by bisection.
        """
        wanted = self._below(x, *start)
        low, high = torch.full_like(x, -50.0), torch.full_like(x, 50.0)
        for _ in range(80):
            middle = (low + high) / 2
            is_below = self._below(middle, *end) < wanted
            low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
        return (low + high) / 2

    def _below(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        parts = self._parts(alpha, sigma)
        return sum((w * torch.special.ndtr((x - m) / s) for w, m, s, _ in parts), torch.zeros_like(x))


GAUSSIAN = Mixture((1.0,), (0.4,), (0.3,))
#: Two kinds of tissue and few voxels between them.
MIXTURE = Mixture((0.35, 0.65), (-1.0, 0.8), (0.5, 0.4))
