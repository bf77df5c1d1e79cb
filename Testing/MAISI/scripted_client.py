"""An engine that a test plays itself: what the panel sends is kept, and the test answers when it wants to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from MAISILib.resources import resource

LABELS = (
    ("mandible", "head and neck", [104, 178, 146], ["jaw bone"]),
    ("larynx", "head and neck", [150, 208, 243], []),
    ("right parotid gland", "head and neck", [236, 170, 190], []),
    ("left parotid gland", "head and neck", [164, 118, 208], []),
    ("spinal cord", "central nervous system", [244, 214, 49], ["medulla spinalis"]),
    ("body", "body", [177, 122, 101], []),
)
DESCRIPTION: dict[str, Any] = {
    "name": "head-neck-mini",
    "title": "Head and neck CT, small (embedded)",
    "version": "0.2",
    "labels": [
        {
            "value": 133 + i,
            "name": name,
            "group": group,
            "color": color,
            "terminology": "",
            "host": None,
            "synonyms": words,
        }
        for i, (name, group, color, words) in enumerate(LABELS)
    ],
    "anatomies": [name for name, *_ in LABELS if name != "body"],
    "anatomies_of": {"library": [name for name, *_ in LABELS if name != "body"]},
    "controllable": [],
    "modalities": ["ct"],
    "regions": [],
    "needs_regions": False,
    "recommended": [
        {"regions": [], "size": [80, 56, 64], "spacing": [6.0, 6.0, 4.0], "modality": None},
        {"regions": [], "size": [96, 80, 96], "spacing": [4.0, 4.0, 2.5], "modality": None},
    ],
    "limits": {
        "size_x": list(range(48, 129, 8)),
        "size_y": list(range(48, 129, 8)),
        "size_z": list(range(32, 129, 8)),
        "equal_xy": False,
        "size_triples": None,
        "spacing_min": [3.5, 3.5, 2.0],
        "spacing_max": [7.0, 7.0, 5.0],
        "equal_spacing_xy": False,
        "min_field_of_view_xy": {"": 200.0},
    },
    "divisor": 8,
    "steps": 30,
    "most_steps": 1000,
    "solvers": ["euler", "heun"],
    "guidance": True,
    "mask_sources": ["library", "file", "none"],
    "intensity": "ct",
    "made_by": {},
    "problems": [],
}
#: A large bundle with a mask generator, body regions and modalities.
WHOLE_BODY: dict[str, Any] = {
    **DESCRIPTION,
    "name": "whole-body",
    "title": "Whole body CT",
    "anatomies_of": {"library": ["mandible", "larynx"], "generated": ["spinal cord"]},
    "controllable": ["liver", "colon", "lung tumor"],
    "modalities": ["ct", "ct_contrast"],
    "regions": ["head", "chest", "abdomen", "lower"],
    "recommended": [
        {"regions": [], "size": [256, 256, 256], "spacing": [1.5, 1.5, 1.5], "modality": None},
        {"regions": ["chest"], "size": [512, 512, 128], "spacing": [0.75, 0.75, 2.422], "modality": None},
    ],
    "limits": {
        **DESCRIPTION["limits"],
        "size_x": [256, 384, 512],
        "size_y": [256, 384, 512],
        "size_z": [128, 256, 384, 512],
        "equal_xy": True,
        "spacing_min": [0.5, 0.5, 0.5],
        "spacing_max": [3.0, 3.0, 5.0],
        "equal_spacing_xy": True,
        "min_field_of_view_xy": {"": 256.0, "abdomen": 384.0},
    },
    "mask_sources": ["library", "generated", "file", "none"],
}
FREE = {"name": "MIT", "url": "https://example.org/mit", "must_accept": False, "accepted": True}
TERMS = {
    "name": "NVIDIA Open Model License",
    "url": "https://example.org/terms",
    "must_accept": True,
    "accepted": False,
}
BUNDLES: list[dict[str, Any]] = [
    {"name": "head-neck-mini", "title": DESCRIPTION["title"], "version": "0.2", "state": "embedded",
     "bytes": 11_000_000, "folder": str(resource("bundles/head-neck-mini")), "licence": FREE, "problem": ""},
    {"name": "whole-body", "title": "Whole body CT", "version": "1", "state": "installed", "bytes": 2_400_000_000,
     "folder": "/bundles/whole-body", "licence": {**TERMS, "accepted": True}, "problem": ""},
    {"name": "nv-rflow-ct", "title": "NVIDIA MAISI CT", "version": "1", "state": "downloadable", "bytes": 4_100_000_000,
     "folder": None, "licence": TERMS, "problem": ""},
]  # fmt: skip
PLAN = {"text": "About 24 s and 1.2 GB on the processor; 9.8 GB are free.", "fits": True, "available_bytes": 9.8e9}
CHECKS = [
    {"name": "PyTorch", "state": "ok", "found": "2.9.0", "advice": ""},
    {"name": "Graphics card", "state": "warning", "found": "none", "advice": "Images are made on the processor."},
    {"name": "Disk", "state": "ok", "found": "182 GB free", "advice": ""},
]  # fmt: skip


class Sent:
    """One command that the panel has sent, and the ways to answer it."""

    def __init__(
        self, number: int, command: str, fields: dict[str, Any], callbacks: dict[str, Any], over: Callable[[Sent], Any]
    ) -> None:
        self.id, self.command, self.fields = str(number), command, copy.deepcopy(fields)
        self.isCancelled = False
        self._callbacks, self._over = callbacks, over

    def progress(self, stage: str, done: int, total: int, **more: Any) -> None:
        self._call(
            "onProgress", {"event": "progress", "id": self.id, "stage": stage, "done": done, "total": total, **more}
        )

    def sample(self, **fields: Any) -> None:
        self._call("onSample", {"event": "sample", "id": self.id, **fields})

    def result(self, data: dict[str, Any] | None = None) -> None:
        self._over(self)
        self._call("onResult", data or {})

    def fail(self, message: str, kind: str = "MaisiError") -> None:
        self._over(self)
        self._call("onFailed", message, kind)

    def cancelled(self) -> None:
        self._over(self)
        self._call("onCancelled")

    def _call(self, name: str, *arguments: Any) -> None:
        if self._callbacks.get(name) is not None:
            self._callbacks[name](*arguments)


class ScriptedClient:
    """`MAISIPanel.WorkerClient.WorkerClient` without a process. Light commands are answered at once from ``answers``.

    A value of ``answers`` is the data, an exception (its kind is its class's name), or a function of the fields.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "bundles": lambda _fields: {"bundles": copy.deepcopy(self.bundles)},
            "describe": lambda fields: {"head-neck-mini": DESCRIPTION, "whole-body": WHOLE_BODY}[fields["bundle"]],
            "plan": PLAN,
            "preflight": {"checks": CHECKS},
            "remove": {},
            "finetune_estimate": {"seconds": 600, "steps": 200},
        }
        self.bundles = copy.deepcopy(BUNDLES)
        self.sent: list[Sent] = []
        self.lastLines: list[str] = []
        self.ready: dict[str, Any] | None = {"event": "ready", "protocol": 1}
        self.onCrash: Callable[[str], None] | None = None
        self.shutdowns = 0
        self._open: dict[str, Sent] = {}

    @property
    def isBusy(self) -> bool:
        return bool(self._open)

    def send(self, command: str, fields: dict[str, Any] | None = None, **callbacks: Any) -> str:
        sent = Sent(len(self.sent) + 1, command, fields or {}, callbacks, lambda each: self._open.pop(each.id, None))
        self.sent.append(sent)
        self._open[sent.id] = sent
        if command in self.answers:
            answer = self.answers[command]
            answer = answer(sent.fields) if callable(answer) else answer
            if isinstance(answer, Exception):
                sent.fail(str(answer), type(answer).__name__)
            else:
                sent.result(copy.deepcopy(answer))
        return sent.id

    def cancel(self, requestId: str) -> None:
        if requestId in self._open:
            self._open[requestId].isCancelled = True

    def shutdown(self) -> None:
        self.shutdowns += 1
        self._open.clear()

    def crash(self, message: str) -> None:
        """The process ends by itself: every open command fails, then the panel is told."""
        for sent in list(self._open.values()):
            sent.fail(message, "Crash")
        if self.onCrash is not None:
            self.onCrash(message)

    def all(self, command: str) -> list[Sent]:
        """The commands of this name, oldest first."""
        return [sent for sent in self.sent if sent.command == command]

    def last(self, command: str) -> Sent:
        return self.all(command)[-1]
