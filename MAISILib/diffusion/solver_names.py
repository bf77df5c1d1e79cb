"""Which solvers there are for which kind of schedule: for who wants to list them without loading PyTorch."""

from __future__ import annotations

#: Schedule kind → its solvers, as :mod:`MAISILib.diffusion.solvers` makes them; the first is the default.
SOLVER_NAMES: dict[str, tuple[str, ...]] = {"rflow": ("euler",), "ddpm": ("ancestral", "ddim")}
