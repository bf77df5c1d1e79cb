"""Which label each segment becomes: the engine's proposals, the user's decisions, and the label that is new."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One segment as the engine maps it.

    Args:
        segment: Its name.
        label: The label's name; empty where it is left out or unknown.
        value: The label's number; ``None`` without a label.
        how: ``exact``, ``synonym``, ``terminology``, ``new``, ``ignored``, ``unknown``, or a word of the engine.
        advice: What to do about it, for people.
    """

    segment: str
    label: str = ""
    value: int | None = None
    how: str = "unknown"
    advice: str = ""


@dataclass
class SegmentMapping:
    """What is known of the segments of a fine-tuning. Nothing here draws or asks; the section and the effect do.

    A new label takes the segment of its name. If the user calls it otherwise, the one segment that nobody knows is
    taken for it.

    Args:
        newLabel: Name of the label to teach; empty for none.
        host: Label that is there without it.
        value: Its number; ``None`` for the next free one.
        edits: Segment → label or ``"ignore"``, as the user decided.
        rows: The engine's last answer.
    """

    newLabel: str = ""
    host: str = ""
    value: int | None = None
    edits: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def newLabels(self) -> tuple[str, ...]:
        """As the engine reads them."""
        if not self.newLabel or not self.host:
            return ()
        return (f"{self.newLabel}={self.value}:{self.host}" if self.value else f"{self.newLabel}:{self.host}",)

    def request(self, bundle: str, segments: list[dict[str, str]]) -> dict[str, Any]:
        """Fields of the engine's command ``map_segments``; decisions about segments that are gone are dropped."""
        names = {segment["name"] for segment in segments}
        self.edits = {segment: label for segment, label in self.edits.items() if segment in names}
        return {
            "bundle": bundle,
            "segments": segments,
            "new_labels": list(self.newLabels()),
            "edits": dict(self.edits),
        }

    def take(self, answer: dict[str, Any]) -> bool:
        """Takes the engine's answer.

        Returns:
            Whether the new label has found its segment just now, so that the engine is to be asked again.
        """
        self.rows = [
            Row(
                row["segment"],
                row.get("label") or "",
                row.get("value"),
                row.get("how") or "unknown",
                row.get("advice") or "",
            )
            for row in answer["mapping"]
        ]
        unknown = self.unknown()
        if self.newLabels() and len(unknown) == 1 and not self.isTaught():
            self.edits[unknown[0]] = self.newLabel
            return True
        return False

    def rename(self, name: str) -> None:
        """Calls the new label otherwise; segments that were taken for it stay so. Without a name there is none."""
        before, self.newLabel = self.newLabel, name
        if before:
            renamed = {segment: name if label == before else label for segment, label in self.edits.items()}
            self.edits = {segment: label for segment, label in renamed.items() if label}

    def decide(self, segment: str, label: str) -> None:
        """The user's decision about a segment: a label's name, or ``"ignore"``."""
        self.edits[segment] = label

    def unknown(self) -> list[str]:
        """Segments that nobody has decided about."""
        return [row.segment for row in self.rows if row.how == "unknown" and not row.label]

    def isTaught(self) -> bool:
        """Whether some segment is the new label."""
        return any(row.label == self.newLabel for row in self.rows if self.newLabel)

    def labels(self) -> list[str]:
        """Labels that the segments have, each once, in their order."""
        return list(dict.fromkeys(row.label for row in self.rows if row.label))

    def problem(self) -> str:
        """What keeps the training from starting, and what to do; empty where nothing does."""
        if not self.rows:
            return "The cases have no segments with voxels. Draw one in the Segment Editor."
        if self.newLabel and not self.host:
            return f"Say in which tissue '{self.newLabel}' lies."
        if unknown := self.unknown():
            named = ", ".join(f"'{name}'" for name in unknown[:3]) + (" …" if len(unknown) > 3 else "")
            return f"No label is known for {named}. Choose labels in the table, or leave the segments out."
        if self.newLabel and not self.isTaught():
            return f"No segment is the new label '{self.newLabel}'. Choose in the table which one is."
        if not self.labels():
            return "All segments are left out. Choose a label for at least one."
        return ""
