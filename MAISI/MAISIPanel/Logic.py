"""What the MAISI module can do, without its panel: for the Python console, scripts, the panel and the effect."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from MAISILib.errors import MaisiError
from MAISIPanel.EngineProcess import engineCommand, externalPython
from MAISIPanel.GenerationJob import Callbacks, GenerationJob, errorOf
from MAISIPanel.MaskFiles import PlannedMask, labelTable
from MAISIPanel.Parameters import GenerateParameters, ParameterNode
from MAISIPanel.Results import ResultEntry, ResultList
from MAISIPanel.WorkerClient import Later, WorkerClient, tell

Nodes = tuple[Any, Any]


class MAISILogic:
    """Generates images into the scene, loads earlier results, and fine-tunes models.

    The engine runs in a process of its own, which starts at the first use and keeps its networks loaded. Lines for the
    Slicer Python console::

        from MAISIPanel.Logic import MAISILogic
        logic = MAISILogic.shared()

        # One CT with its segmentation, from a mask of the model's library
        volumeNode, segmentationNode = logic.generate(bundle="head-neck-mini", anatomy=["mandible"], seed=7)

        # The same again: identical voxels
        replayedNode, _ = logic.replay(volumeNode)
        print(logic.results.compare(volumeNode, replayedNode))

        # An image for a segmentation of the scene, on the grid of a volume of the scene
        segmentationNode = slicer.util.getNode("Segmentation")
        volumeNode, _ = logic.generate(segmentationNode=segmentationNode, referenceVolumeNode=None, seed=1)

        # In the background
        job = logic.generateAsync(count=3, seed=5, onDone=lambda nodes: print(len(nodes), "images"))
        job.cancel()

        # What there is, and what it would cost
        [bundle["name"] for bundle in logic.ask("bundles")["bundles"]]
        logic.ask("plan", bundle="head-neck-mini", request={"steps": 30})["text"]

        # Earlier results, or any image with its label map
        logic.loadResult("/data/results/sample-0000")
        logic.loadPair("/data/ct.nii.gz", "/data/labels.nii.gz")

    Args:
        scene: A vtkMRMLScene; ``slicer.mrmlScene`` where not given.
        client: A `WorkerClient`; one that runs the engine by Qt where not given.
        later: ``later(milliseconds, function)`` calls a function from the event loop; Qt's timer where not given.
        processEvents: Lets the event loop work while a call waits; the application's where not given.
    """

    _shared: MAISILogic | None = None

    def __init__(
        self,
        scene: Any = None,
        client: WorkerClient | None = None,
        later: Later | None = None,
        processEvents: Callable[[], Any] | None = None,
    ) -> None:
        if scene is None:
            import slicer

            scene = slicer.mrmlScene
        self.scene = scene
        self._later = later or _qtTimer
        self._processEvents = processEvents or _applicationEvents
        self._client = client or WorkerClient(_qtProcess, lambda: engineCommand(externalPython()), self._later)
        #: Called with each `GenerationJob` that begins, whoever has asked for it; the panel follows it.
        self.onBegun: Callable[[GenerationJob], Any] | None = None
        self._job: GenerationJob | None = None
        self._jobs: list[GenerationJob] = []
        self._plannedMask = PlannedMask()
        self._trainingJobs: Any = None
        self.parameterNode = ParameterNode(scene)
        self.results = ResultList(scene)
        application: Any = getattr(sys.modules.get("slicer"), "app", None)
        if hasattr(application, "connect"):
            application.connect("aboutToQuit()", self.shutdown)

    @classmethod
    def shared(cls) -> MAISILogic:
        """The logic that the panel, the Segment Editor effect and the console share, so that there is one engine."""
        if MAISILogic._shared is None:
            MAISILogic._shared = cls()
        return MAISILogic._shared

    @property
    def client(self) -> WorkerClient:
        """Sends commands to the engine; see ``docs/worker.md``."""
        return self._client

    @property
    def isGenerating(self) -> bool:
        """Whether a generation runs, or its results are still on their way into the scene."""
        return self._job is not None and self._job.isRunning

    @property
    def job(self) -> GenerationJob | None:
        """The generation that runs, or the last one."""
        return self._job

    # ------------------------------------------------------------------ generate

    def generate(
        self,
        *,
        bundle: str = "head-neck-mini",
        segmentationNode: Any = None,
        referenceVolumeNode: Any = None,
        device: str = "auto",
        **request: Any,
    ) -> Nodes:
        """Generates, and waits for it while the application stays responsive.

        Args:
            bundle: Name in the catalogue, or a folder.
            segmentationNode: Make the image for this segmentation.
            referenceVolumeNode: Volume on whose grid that image shall be; the segmentation's own geometry where not
                given.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            request: Fields of the engine's ``GenerateRequest``: ``anatomy``, ``output_size`` (voxels), ``spacing``
                (mm), ``seed``, ``count``, ``steps``, ….

        Returns:
            Volume and segmentation node of the first sample (segmentation None for ``mask="none"``); all samples are in
            `results`.

        Raises:
            MaisiError: As the engine says, for example RequestError; also where a generation runs already.
        """
        return self._finished(
            self.generateAsync(
                bundle=bundle,
                segmentationNode=segmentationNode,
                referenceVolumeNode=referenceVolumeNode,
                device=device,
                **request,
            )
        )

    def generateAsync(
        self,
        *,
        bundle: str = "head-neck-mini",
        segmentationNode: Any = None,
        referenceVolumeNode: Any = None,
        device: str = "auto",
        onDone: Callable[[list[Nodes]], Any] | None = None,
        onProgress: Callable[[dict[str, Any]], Any] | None = None,
        onSample: Callable[[Any, Any], Any] | None = None,
        onNote: Callable[[str], Any] | None = None,
        onFailed: Callable[[str, str], Any] | None = None,
        onCancelled: Callable[[], Any] | None = None,
        **request: Any,
    ) -> GenerationJob:
        """Like `generate`, without waiting. Exactly one of ``onDone``, ``onFailed`` and ``onCancelled`` is called.

        Args:
            bundle: As for `generate`.
            segmentationNode: As for `generate`.
            referenceVolumeNode: As for `generate`.
            device: As for `generate`.
            onDone: Gets the volume and segmentation nodes of all samples.
            onProgress: Gets the engine's progress events; the stages ``prepare`` and ``show`` are the scene's own.
            onSample: Gets the nodes of each sample as soon as it is in the scene.
            onNote: Gets what the user should know, such as what was changed in a segmentation.
            onFailed: Gets a message for people and the kind of error. Samples that came before stay in the scene.
            onCancelled: Called when the cancel had its effect.
            request: As for `generate`.

        Returns:
            The job, with ``cancel()``, ``isRunning``, ``nodes``, ``notes`` and ``error``.
        """
        callbacks = Callbacks(onDone, onProgress, onSample, onNote, onFailed, onCancelled)
        if segmentationNode is not None:
            request["mask"] = "file"
        return self._start(
            callbacks,
            lambda job: job.generate(bundle, request, device, segmentationNode, referenceVolumeNode),
            request.get("count", 1),
        )

    def generateFromParameters(self, parameters: GenerateParameters, **callbacks: Any) -> GenerationJob:
        """`generateAsync` for the settings of the panel; callbacks as there."""
        isValid, reason = parameters.isValid()
        segmentation = self.scene.GetNodeByID(parameters.segmentationNodeID or "")
        reference = self.scene.GetNodeByID(parameters.referenceVolumeID or "")
        isForSegmentation = parameters.maskSource == "file"
        if isValid and isForSegmentation and segmentation is None:
            isValid, reason = False, "The chosen segmentation is no longer in the scene. Choose another one."

        def begin(job: GenerationJob) -> None:
            if not isValid:
                job.fail(reason, "RequestError")
                return
            nodes = (segmentation, reference) if isForSegmentation else (None, None)
            job.generate(parameters.bundle, parameters.toRequest(), parameters.device, *nodes)

        return self._start(Callbacks(**callbacks), begin, parameters.count)

    def plan(
        self,
        parameters: GenerateParameters,
        onResult: Callable[[dict[str, Any]], Any],
        onFailed: Callable[[str, str], Any],
    ) -> None:
        """Asks what a generation would cost; see ``plan`` in ``docs/worker.md``.

        Args:
            parameters: What would be generated.
            onResult: Gets the engine's answer.
            onFailed: Gets a message for people and the kind of error; also where a segmentation cannot be used.
        """

        def send(request: dict[str, Any]) -> None:
            fields = {"bundle": parameters.bundle, "request": request, "device": parameters.device}
            self.client.send("plan", fields, onResult=onResult, onFailed=onFailed)

        def listed(data: dict[str, Any]) -> None:
            segmentation = self.scene.GetNodeByID(parameters.segmentationNodeID)
            reference = self.scene.GetNodeByID(parameters.referenceVolumeID or "")
            try:
                mask = self._plannedMask.fields(segmentation, reference, labelTable(parameters.bundle, data))
            except MaisiError as error:
                onFailed(str(error), type(error).__name__)
            else:
                send({**parameters.toRequest(), **mask})

        isValid, reason = parameters.isValid()
        if not isValid:
            onFailed(reason, "RequestError")
        elif parameters.maskSource == "file":
            self.client.send("bundles", onResult=listed, onFailed=onFailed)
        else:
            send(parameters.toRequest())

    def replay(self, volumeNode: Any) -> Nodes:
        """Makes a generated image once more, with identical voxels on the same machine, and waits for it.

        Raises:
            MaisiError: The image was not generated here, or its model or mask has changed since.
        """
        return self._finished(self.replayAsync(volumeNode))

    def replayAsync(self, volumeNode: Any, **callbacks: Any) -> GenerationJob:
        """`replay` without waiting; callbacks as for `generateAsync`."""
        return self._start(Callbacks(**callbacks), lambda job: job.replay(ResultEntry(volumeNode)))

    def cancel(self) -> None:
        """Stops the generation that runs."""
        if self._job is not None:
            self._job.cancel()

    # ------------------------------------------------------------------ everything else

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Sends a command to the engine and waits for its answer; for the console.

        Raises:
            MaisiError: As the engine says.
        """
        answer: list[Any] = []
        self.client.send(
            command,
            fields,
            onResult=answer.append,
            onFailed=lambda message, kind: answer.append(errorOf(message, kind)),
            onCancelled=lambda: answer.append(errorOf("Cancelled.", "Cancelled")),
        )
        self._wait(lambda: bool(answer))
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    def loadResult(self, path: str | Path) -> list[Nodes]:
        """Puts earlier results into the scene.

        Args:
            path: Folder of a sample, its ``provenance.json``, or a folder with several samples or with pairs of an
                image and a label map.

        Raises:
            FileFormatError: There is none.
        """
        return self._finishedLoading(self.loadAsync(path))

    def loadPair(self, image: str | Path, labelmap: str | Path | None) -> Nodes:
        """Puts an image and its label map into the scene as the same kind of nodes as a generated sample.

        Args:
            image: Any volume file that Slicer reads.
            labelmap: A label map in the labels of the chosen bundle, or a segmentation (``.seg.nrrd``).

        Raises:
            FileFormatError: A file cannot be read.
        """
        return self._finished(self.loadAsync(image, labelmap))

    def loadAsync(self, path: str | Path, labelmap: str | Path | None = None, **callbacks: Any) -> GenerationJob:
        """`loadResult` or, with a label map, `loadPair`, in short steps from the event loop.

        Callbacks as for `generateAsync`.
        """
        job = self._newJob(Callbacks(**callbacks))
        job.load(Path(path), Path(labelmap) if labelmap else None, self.parameterNode.get().bundle)
        return job

    @property
    def trainingJobs(self) -> Any:
        """The fine-tunings of this computer, which go on when Slicer is closed; see `MAISIPanel.TrainingJobs`."""
        if self._trainingJobs is None:
            from MAISIPanel.TrainingJobs import TrainingJobs

            self._trainingJobs = TrainingJobs()
        return self._trainingJobs

    def fineTune(self, cases: Any, **wish: Any) -> Any:
        """Starts a fine-tuning in the background; arguments and return value as for ``TrainingJobs.start``."""
        return self.trainingJobs.start(cases, **wish)

    def shutdown(self) -> None:
        """Ends the engine and whatever it makes, and removes temporary files. Trainings go on."""
        self.client.shutdown()
        for job in self._jobs:
            job.abandon()
        self._plannedMask.remove()
        if MAISILogic._shared is self:
            MAISILogic._shared = None

    # ------------------------------------------------------------------ how

    def _newJob(self, callbacks: Callbacks, count: int = 1) -> GenerationJob:
        job = GenerationJob(self.client, self.results, self._later, callbacks, count)
        self._jobs = [*(each for each in self._jobs if each.isRunning), job]
        return job

    def _start(self, callbacks: Callbacks, begin: Callable[[GenerationJob], None], count: int = 1) -> GenerationJob:
        job = self._newJob(callbacks, count)
        if self.isGenerating:
            job.fail("A generation is running already. Wait for it, or cancel it first.", "RequestError")
            return job
        self._job = job
        tell(self.onBegun, job)
        begin(job)
        return job

    def _finished(self, job: GenerationJob) -> Nodes:
        nodes = self._finishedLoading(job)
        if not nodes:
            raise MaisiError("The image was deleted while it came into the scene.")
        return nodes[0]

    def _finishedLoading(self, job: GenerationJob) -> list[Nodes]:
        try:
            self._wait(lambda: not job.isRunning)
        except KeyboardInterrupt:
            job.cancel()
            raise
        if job.error is not None:
            raise job.error
        return job.nodes

    def _wait(self, isOver: Callable[[], bool]) -> None:
        while not isOver():
            self._processEvents()
            time.sleep(0.005)


def _qtTimer(milliseconds: int, function: Callable[[], Any]) -> None:
    import qt

    qt.QTimer.singleShot(milliseconds, function)


def _qtProcess() -> Any:
    from MAISIPanel.QtProcess import QtProcess

    return QtProcess()


def _applicationEvents() -> None:
    import slicer

    slicer.app.processEvents()
