"""What a user asks of a fine-tuning: checked, kept as plain data, turned into the engine's command line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from MAISILib.errors import RequestError
from MAISILib.training.durations import steps_of

#: What the engine reads as "leave this segment out".
IGNORE = "ignore"
#: As bundles may be called: they are folders on every operating system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class TrainingWish:
    """A fine-tuning to start.

    Args:
        name: Of the new bundle: letters, digits, ``.``, ``_`` and ``-``.
        bundle: Name or folder of the parent.
        newLabels: ``"lesion=150:target"``, or ``"lesion:target"`` for the next free value; the host stands behind the
            colon.
        focus: Labels that it is about; empty for the new ones.
        edits: Segment → label, or ``"ignore"``, where the user decides otherwise than the engine proposes.
        duration: ``"quick"``, ``"normal"`` or ``"long"``, see `MAISILib.training.durations`.
        steps: Training steps, in place of ``duration``.
        device: As for ``maisi finetune``.

    Example:
        >>> wish = TrainingWish("my-lesion", newLabels=("lesion:target",), duration="quick")
        >>> wish.isValid()
        (True, '')
    """

    name: str
    bundle: str = "head-neck-mini"
    newLabels: tuple[str, ...] = ()
    focus: tuple[str, ...] = ()
    edits: dict[str, str] = field(default_factory=dict)
    duration: str = "normal"
    steps: int | None = None
    device: str = "auto"

    def isValid(self) -> tuple[bool, str]:
        """Whether it can be started as far as this process can tell, and what to change if not.

        Labels, hosts and segments are checked by the engine, which knows them.
        """
        if not self.bundle:
            return False, "Choose the model to start from."
        if not self.newLabels and not self.focus:
            return False, "Say what is to be learned: a new label, or a label of the model as focus."
        if not _NAME.fullmatch(self.name):
            return False, "Name the new model: letters, digits, '.', '_' and '-', for example head-neck-lesion."
        try:
            steps_of(self.duration, self.steps)
        except RequestError as error:
            return False, str(error)
        return True, ""

    def arguments(self, cases: Path, out: Path) -> list[str]:
        """The arguments for ``python -m MAISILib``.

        Args:
            cases: The list of cases.
            out: Folder of the new bundle.
        """
        # "=" binds values that begin with a dash to their option.
        arguments = ["finetune", f"--cases={cases}", f"--out={out}", f"--bundle={self.bundle}"]
        arguments += [f"--new-label={label}" for label in self.newLabels]
        arguments += [f"--focus={label}" for label in self.focus]
        arguments += [f"--map={segment}={label}" for segment, label in self.edits.items()]
        arguments.append(f"--duration={self.duration}" if self.steps is None else f"--steps={self.steps}")
        return [*arguments, f"--device={self.device}"]

    def toDict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "newLabels": list(self.newLabels), "focus": list(self.focus)}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> TrainingWish:
        """A wish of plain data.

        Raises:
            RequestError: A field is missing, unknown or of the wrong kind.
        """
        try:
            lists = {name: tuple(map(str, data[name])) for name in ("newLabels", "focus") if name in data}
            return cls(**{**data, **lists})
        except TypeError as error:
            known = ", ".join(item.name for item in fields(cls))
            raise RequestError(f"No fine-tuning can be asked for like this ({error}). Its fields: {known}.") from None


def suggestedName(bundle: str, label: str, taken: Iterable[str]) -> str:
    """A free name for the new bundle, from its parent's and the label that it learns."""
    plain = [unicodedata.normalize("NFKD", part) for part in (Path(bundle).name, label)]
    plain = ["".join(letter for letter in part if not unicodedata.combining(letter)) for part in plain]
    text = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._") for part in plain)
    wanted = text.strip("-")[:56] or "fine-tuned"
    used = {name.casefold() for name in taken}
    name, number = wanted, 1
    while name.casefold() in used:
        number += 1
        name = f"{wanted}-{number}"
    return name
