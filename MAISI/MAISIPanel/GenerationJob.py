"""One generation, replay or loading: from the request to the nodes in the scene, step by step from the event loop."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from MAISILib import errors
from MAISILib.errors import MaisiError
from MAISILib.scene.label_tables import table_of_result
from MAISILib.scene.results import find_results, pair_steps, result_steps
from MAISIPanel.MaskFiles import isThere, labelTable, temporaryFolder, writeMask
from MAISIPanel.Results import ResultEntry, ResultList
from MAISIPanel.WorkerClient import Event, Later, WorkerClient, tell


@dataclass
class Callbacks:
    """Who wants to know; see `MAISIPanel.Logic.MAISILogic.generateAsync`."""

    onDone: Callable[[list[Any]], Any] | None = None
    onProgress: Callable[[Event], Any] | None = None
    onSample: Callable[[Any, Any], Any] | None = None
    onNote: Callable[[str], Any] | None = None
    onFailed: Callable[[str, str], Any] | None = None
    onCancelled: Callable[[], Any] | None = None


def errorOf(message: str, kind: str) -> MaisiError:
    """The exception for an error of the engine, by the name of its class."""
    found: Any = getattr(errors, kind, None)
    isOurs = isinstance(found, type) and issubclass(found, MaisiError)
    return found(message) if isOurs else MaisiError(message)


class GenerationJob:
    """Use `MAISILogic.generateAsync`, which makes it.

    Samples travel as files in a temporary folder, which is removed when they are in the scene. Each is put there in
    steps, so that the event loop works in between. The scene may be closed and nodes deleted at any time: a sample that
    was only half in the scene is then put there again.

    Args:
        client: Of the engine.
        results: The results of the scene.
        later: Calls a function from the event loop.
        callbacks: Who wants to know; `follow` adds others.
        count: Number of samples that are asked for.
    """

    def __init__(
        self, client: WorkerClient, results: ResultList, later: Later, callbacks: Callbacks, count: int = 1
    ) -> None:
        self.isRunning, self.count = True, count
        #: Volume and segmentation node (or None) of each sample that is in the scene.
        self.nodes: list[tuple[Any, Any]] = []
        #: What the user should know, such as what was changed in a segmentation.
        self.notes: list[str] = []
        #: What went wrong, as an exception that can be raised; None where nothing did.
        self.error: MaisiError | None = None
        self._kind = ""
        self._client, self._results, self._later, self._followers = client, results, later, [callbacks]
        self._scene = results.scene
        self._folder: Path | None = None
        #: How the image of a segmentation is named and where it lies.
        self._title, self._grid, self._transformID = "", None, None
        self._requestId: str | None = None
        self._awaitsEngine = False
        self._isCancelled = False
        #: What makes the steps by which each sample that has come gets into the scene.
        self._arrivals: deque[Callable[[], Any]] = deque()
        self._steps: Any = None
        self._observer: int | None = None

    def follow(self, callbacks: Callbacks) -> None:
        """Someone else wants to know, from now on."""
        self._followers.append(callbacks)

    # ------------------------------------------------------------------ what to do

    def generate(self, bundle: str, request: dict[str, Any], device: str, segmentation: Any, reference: Any) -> None:
        """Generates; for a segmentation node on the grid of a reference volume, if given."""
        if segmentation is None:
            self._inFolder(lambda folder: self._send(folder, {"bundle": bundle, "request": request, "device": device}))
            return

        def listed(data: Event) -> None:
            self._inFolder(lambda folder: sendMask(folder, labelTable(bundle, data)))

        def sendMask(folder: Path, table: Any) -> None:
            files, written = writeMask(segmentation, reference, table, folder)
            self._note(*written.notes)
            self._title, self._grid = segmentation.GetName(), written.grid
            self._transformID = written.place.GetTransformNodeID()
            self._send(folder, {"bundle": bundle, "request": {**request, **files}, "device": device})

        self._progress("prepare", "reading the segmentation")
        self._ask("bundles", {}, listed)

    def replay(self, entry: ResultEntry) -> None:
        """Makes a sample again, exactly."""

        def send(folder: Path) -> None:
            self._title = _plainName(entry)
            self._grid, self._transformID = entry.grid, entry.volumeNode.GetTransformNodeID()
            self._send(folder, {"replay": str(entry.writeReplay(folder))}, suffix=" (replay)")

        self._inFolder(send)

    def load(self, path: Path, labelmap: Path | None, bundle: str) -> None:
        """Puts earlier results, or an image with its label map, into the scene."""

        def begin(table: Any) -> None:
            if labelmap is not None:
                self._arrived(partial(pair_steps, self._scene, path, labelmap, table=table))
                return
            for steps in find_results(path):
                self._arrived(partial(steps, self._scene, table=table))

        if self._client.ready is not None:
            # Only the engine knows where the bundles of this computer are.
            self._ask("bundles", {}, lambda data: self._try(lambda: begin(labelTable(bundle, data))))
        else:
            self._try(lambda: begin(table_of_result(None, {"bundle": {"name": bundle}})))

    def cancel(self) -> None:
        """Stops it. What is in the scene already stays there."""
        if not self.isRunning or self._isCancelled:
            return
        self._isCancelled = True
        self._arrivals.clear()
        self._closeSteps()
        if self._requestId is not None and self._awaitsEngine:
            self._client.cancel(self._requestId)
        else:
            self._finish()

    def abandon(self) -> None:
        """Lets go of everything without a word, as the application is closing."""
        if self.isRunning:
            self.error = errors.Cancelled("MAISI was closed.")
        self.isRunning = False
        self._arrivals.clear()
        self._closeSteps()
        self._stopObserving()
        self._removeFolder()

    def fail(self, message: str, kind: str) -> None:
        """Ends it with an error."""
        self._awaitsEngine = False
        if self.error is None:
            self.error, self._kind = errorOf(message, kind), kind
        self._finishWhenShown()

    # ------------------------------------------------------------------ the engine's side

    def _inFolder(self, work: Callable[[Path], None]) -> None:
        def begin() -> None:
            self._folder = self._folder or temporaryFolder()
            work(self._folder)

        self._try(begin)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            ours = _asOurs(error, "prepare this")
            self.fail(str(ours), type(ours).__name__)

    def _ask(self, command: str, fields: Event, onResult: Callable[[Event], None], **callbacks: Any) -> None:
        self._awaitsEngine = True

        def answered(data: Event) -> None:
            self._awaitsEngine, self._requestId = False, None
            if self._isCancelled:
                self._finish()
            elif self.isRunning:
                onResult(data)

        self._requestId = self._client.send(
            command, fields, onResult=answered, onFailed=self.fail, onCancelled=self._engineCancelled, **callbacks
        )

    def _send(self, folder: Path, fields: Event, suffix: str = "") -> None:
        self._observe()
        fields = {**fields, "out": str(folder / "result")}
        self._ask(
            "generate",
            fields,
            lambda data: self._finishWhenShown(),
            onProgress=lambda event: self._tell("onProgress", event),
            onSample=lambda event: self._sampleCame(event, suffix),
        )

    def _sampleCame(self, event: Event, suffix: str) -> None:
        if not self._isCancelled:
            folder = Path(str(event.get("folder")))
            self._arrived(partial(result_steps, self._scene, folder, title=self._title, suffix=suffix, grid=self._grid))

    def _engineCancelled(self) -> None:
        self._awaitsEngine, self._isCancelled = False, True
        self._finish()

    # ------------------------------------------------------------------ the scene's side

    def _arrived(self, steps: Callable[[], Any]) -> None:
        self._arrivals.append(steps)
        self._observe()
        if len(self._arrivals) == 1:
            self._later(0, self._step)

    def _step(self) -> None:
        if not self._arrivals:
            return
        try:
            if self._steps is None:
                self._steps = self._arrivals[0]()
            self._progress("show", next(self._steps))
        except StopIteration as end:
            self._shown(end.value)
        except Exception as error:
            self._notShown(_asOurs(error, "put the result into the scene"))
        if self._arrivals:
            self._later(0, self._step)
        else:
            self._finishWhenShown()

    def _shown(self, shown: Any) -> None:
        self._steps = None
        self._arrivals.popleft()
        self._note(*shown.notes)
        if not isThere(shown.volume):
            self._note("An image was deleted while it came into the scene.")
            return
        if self._transformID and self._scene.GetNodeByID(self._transformID) is not None:
            for node in filter(isThere, (shown.volume, shown.segmentation)):
                node.SetAndObserveTransformNodeID(self._transformID)
        entry = ResultEntry(shown.volume)
        entry.keep(self.notes)
        if entry.checkedOrgans:
            with suppress(MaisiError):  # a check without a single organ
                self._results.makeChart(entry)
        if not self.nodes:
            self._results.show(entry)
        self.nodes.append((shown.volume, shown.segmentation))
        self._tell("onSample", shown.volume, shown.segmentation)

    def _notShown(self, error: MaisiError) -> None:
        """A sample that cannot be read is not lost: its folder stays, and the message says where."""
        self._steps = None
        self._arrivals.popleft()
        message = str(error)
        if self._folder is not None:
            message += f" The files of the result were kept in {self._folder}."
            self._folder = None
        if self.error is None:
            self.error, self._kind = type(error)(message), type(error).__name__

    def _sceneClosed(self, *_: Any) -> None:
        """What was on its way goes into the new scene."""
        self.nodes = [nodes for nodes in self.nodes if nodes[0].GetScene() is not None]
        self._closeSteps()
        if self._arrivals or self._awaitsEngine:
            self._note("The scene was closed meanwhile. The result comes into the new one.")

    def _closeSteps(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    # ------------------------------------------------------------------ the end

    def _finishWhenShown(self) -> None:
        if not self._arrivals and not self._awaitsEngine:
            self._finish()

    def _finish(self) -> None:
        if not self.isRunning:
            return
        self.isRunning = False
        self._stopObserving()
        self._removeFolder()
        if self.error is not None:
            self._tell("onFailed", str(self.error), self._kind)
        elif self._isCancelled:
            self.error = errors.Cancelled("Cancelled.")
            self._tell("onCancelled")
        else:
            self._tell("onDone", self.nodes)

    def _observe(self) -> None:
        if self._observer is None:
            import slicer

            self._observer = self._scene.AddObserver(slicer.vtkMRMLScene.EndCloseEvent, self._sceneClosed)

    def _stopObserving(self) -> None:
        if self._observer is not None:
            self._scene.RemoveObserver(self._observer)
            self._observer = None

    def _removeFolder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _note(self, *notes: str) -> None:
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
                self._tell("onNote", note)

    def _progress(self, stage: str, message: str) -> None:
        event = {"event": "progress", "stage": stage, "done": 0, "total": 0, "message": message}
        self._tell("onProgress", event)

    def _tell(self, name: str, *news: Any) -> None:
        for callbacks in self._followers:
            tell(getattr(callbacks, name), *news)


def _asOurs(error: Exception, what: str) -> MaisiError:
    """An error for people. A mistake of ours must end the job too, or it would seem to run for ever."""
    if isinstance(error, MaisiError):
        return error
    logging.exception("MAISI: could not %s", what)
    return MaisiError(f"MAISI could not {what} ({type(error).__name__}: {error}). Slicer's log has the details.")


def _plainName(entry: ResultEntry) -> str:
    """The first words of a result's name, which the job puts a seed behind."""
    return entry.name.partition(" seed ")[0]
