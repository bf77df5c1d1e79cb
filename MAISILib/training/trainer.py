"""The one training loop: devices, precision, processes, averages, checkpoints, events. What is learned, tasks say."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from MAISILib.errors import Cancelled, FailedTrainingError, OutOfMemory, TrainingError, means_out_of_memory
from MAISILib.files.atomic import output_error
from MAISILib.generation.progress import CancelToken
from MAISILib.jobs.folder import Event, JobFolder, OnEvent, runs_elsewhere
from MAISILib.training.checkpoint import Checkpoint, MovingAverage, read_checkpoint
from MAISILib.training.loss_watch import LossWatch
from MAISILib.training.processes import Processes
from MAISILib.training.recipes import Recipe
from MAISILib.training.run_identity import check_best_metric, check_resumable, run_identity
from MAISILib.training.stream import Batch, ItemStream
from MAISILib.training.task import Task, Tensors

CHECKPOINT_NAME = "checkpoint.pt"
#: The weights that validated best, where the recipe names a ``best_metric``.
BEST_NAME = "best.pt"
#: However the loss behaves, no more than so many times ``save_minutes`` are lost.
_LONGEST_DOUBT = 10
#: Called after a validation with (step, networks with averaged weights, run folder); returns the files that it wrote.
OnValidation = Callable[[int, dict[str, nn.Module], Path], list[Path]]


class _Trainee(nn.Module):
    """All networks of a task as one module, so that data-parallel training sees one forward pass."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(task.networks)
        self._losses = task.losses

    def forward(self, phase: str, batch: Batch) -> Tensors:
        """Losses per sample in float32.

        The batch comes as an object because data-parallel training copies dictionaries on GPUs, and a later phase must
        see what an earlier one has left in the tensors of its batch.
        """
        return {name: value.float() for name, value in self._losses(phase, batch.tensors).items()}


class Trainer:
    """Trains a task in a run folder.

    Started by ``torchrun`` it is one of several processes: each takes its share of every batch, gradients are averaged,
    the first process writes.

    Args:
        task: What is learned.
        recipe: For how long and how.
        folder: Run folder: a job folder with ``checkpoint.pt`` and ``tensorboard/``.
        resume: Go on from the checkpoint in ``folder``, if there is one.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        cancel: Its ``cancel()`` lets the present step end and be saved.
        on_event: Hears every event of the job, in the first process.
        on_validation: Makes pictures, in the first process; also where nothing is held out.

    Raises:
        TrainingError: No training items; a ``best_metric`` that the task is not judged by; the folder holds a run and
            ``resume`` is not set, or another run.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        folder: Path,
        *,
        resume: bool = False,
        device: str = "auto",
        cancel: CancelToken | None = None,
        on_event: OnEvent = lambda event: None,
        on_validation: OnValidation | None = None,
    ) -> None:
        if task.item_count() == 0:
            raise TrainingError(f"There is nothing to train the {task.name} on. Give a data list with training items.")
        check_best_metric(task, recipe)
        self._task, self._recipe, self._folder = task, recipe, folder
        self._cancel, self._on_event, self._on_validation = cancel or CancelToken(), on_event, on_validation
        self._processes = Processes(device, recipe.precision, in_phases=len(task.phases) > 1)
        self._stream = ItemStream(
            task, recipe.seed, recipe.batch, recipe.accumulate, self._processes.index, self._processes.count
        )
        self._watch = LossWatch()
        self.step, self.position, self.seconds = 0, 0, 0.0
        self._best: float | None = None
        self._since_best = 0
        self._figures: dict[str, float] = {}
        saved = self._saved(resume)
        accelerator = self._processes.accelerator
        optimizers = [self._optimizer(phase) for phase in task.phases]
        self._trainee, *prepared = accelerator.prepare(_Trainee(task), *optimizers)
        self._optimizers: dict[str, Any] = dict(zip(task.phases, prepared, strict=True))
        self.averages = {name: MovingAverage(n, recipe.average_decay) for name, n in task.networks.items()}
        if saved is not None:
            self._restore(saved)
        self._job = JobFolder(folder) if self._processes.is_first else None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the results."""
        return self._processes.is_first

    @property
    def has_best(self) -> bool:
        """Whether ``best.pt`` holds the weights that validated best."""
        return self._best is not None

    def run(self) -> dict[str, float]:
        """Trains to the recipe's last step and returns the figures of the last validation.

        Raises:
            FailedTrainingError: The loss or its gradient is not finite (the message names the batch), the loss has
                diverged, or another process of the run is gone.
            Cancelled: Asked by ``cancel``; the checkpoint holds the run as it is, or where its loss is running away as
                it was before.
            OutOfMemory: A step needs more than there is.
            OutputError: The disk is full. In every case the last checkpoint stays.
        """
        recipe = self._recipe
        saved_at = asked_at = ticked = time.monotonic()
        with (
            self._job.running() if self._job else nullcontext(),
            self._explained(),
            self._board() as board,
            closing(self._stream.batches(self.position)) as batches,
        ):
            if self._job:
                self._job.write_request({"train": recipe.model_dump(mode="json")})
            for remark in recipe.remarks if self.step == 0 else ():
                self._tell(Event(self._task.name, 0, recipe.steps, remark))
            while self.step < recipe.steps and not self._is_out_of_patience:
                metrics = self._train_step(next(batches))
                now = time.monotonic()
                self.seconds, ticked = self.seconds + now - ticked, now
                self._report(metrics, board)
                due = recipe.validate_every and self.step % recipe.validate_every == 0
                if due or self.step == recipe.steps:
                    self._validate(board)
                if self._processes.anyone(self._cancel.cancelled):
                    raise self._stopped()
                if self._processes.anyone(now - asked_at > recipe.save_minutes * 60):
                    asked_at = time.monotonic()
                    # While the loss is running away the last good checkpoint stays, but not for ever: it may be a loss
                    # that settles higher than it began.
                    too_old = asked_at - saved_at > _LONGEST_DOUBT * recipe.save_minutes * 60
                    if too_old or not self._watch.is_doubtful:
                        self._save(CHECKPOINT_NAME)
                        saved_at = asked_at
            if self._is_out_of_patience:
                self._tell(Event(self._task.name, self.step, recipe.steps, "no better any more: stopping early"))
            self._save(CHECKPOINT_NAME)
        return self._figures

    def _stopped(self) -> Cancelled:
        """Saves the step at which the run was cancelled, unless there is a checkpoint of better times."""
        if self._watch.is_doubtful and (self._folder / CHECKPOINT_NAME).exists():
            return Cancelled(
                f"Stopped at step {self.step}, where the loss was running away: the checkpoint of an earlier step is "
                "kept. The same command with --resume goes on from there."
            )
        self._save(CHECKPOINT_NAME)
        return Cancelled(f"Stopped at step {self.step}. The same command with --resume goes on.")

    @property
    def _is_out_of_patience(self) -> bool:
        return self._recipe.patience is not None and self._since_best >= self._recipe.patience

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says in our words what PyTorch says in its own."""
        try:
            yield
        except Exception as error:
            if means_out_of_memory(error):
                raise OutOfMemory(
                    f"Step {self.step} of {self._folder} does not fit into the memory of {self._processes.device}. Set "
                    "checkpoint_activations in the recipe, or a smaller batch (with accumulate) or smaller patches."
                ) from error
            if self._processes.means_lost(error):
                raise FailedTrainingError(
                    f"Another process of {self._folder} is gone, after step {self.step}. Its own output says why. The "
                    "same command with --resume goes on from the last checkpoint."
                ) from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # TensorBoard's own
                raise output_error(self._folder, error) from error
            raise

    def _train_step(self, batches: list[Batch]) -> dict[str, float]:
        """One step of every phase's optimiser on the same batches; gradients are means over all of them."""
        accelerator, device = self._processes.accelerator, self._processes.device
        batches = [Batch(b.names, {name: value.to(device) for name, value in b.tensors.items()}) for b in batches]
        metrics: dict[str, float] = {}
        for phase, optimizer in self._optimizers.items():
            for name, network in self._task.networks.items():
                network.requires_grad_(name in self._task.phases[phase])
            for group in optimizer.param_groups:
                group["lr"] = self._recipe.rate_at(self.step, self.position / self._task.item_count())
            optimizer.zero_grad()
            sums: Tensors = {}
            for batch in batches:
                with nullcontext() if batch is batches[-1] else accelerator.no_sync(self._trainee):
                    losses = self._trainee(phase, batch)
                    accelerator.backward(losses["loss"].mean() / len(batches))
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0) + value.detach().mean() / len(batches)
            own = {name if len(self._optimizers) == 1 else f"{phase} {name}": value for name, value in sums.items()}
            metrics |= self._checked(own, batches)
            most = float("inf") if self._recipe.clip is None else self._recipe.clip
            norm = accelerator.clip_grad_norm_(optimizer.param_groups[0]["params"], most)
            # The scaler of float16 skips such a step by itself and goes on with a smaller scale.
            if accelerator.scaler is None and not _finite([float(norm)]):
                raise self._spoiled(f"a gradient of norm {float(norm)}", [name for b in batches for name in b.names])
            optimizer.step()
        for name, network in self._task.networks.items():
            self.averages[name].update(network)
        self.position += self._stream.positions_per_step
        self.step += 1
        return metrics

    def _checked(self, metrics: Tensors, batches: list[Batch]) -> dict[str, float]:
        """Means over all processes; stops before the optimiser takes a step that would spoil the weights."""
        means = self._processes.mean(metrics)
        if _finite(means.values()):
            return means
        mine = [] if _finite(float(v) for v in metrics.values()) else [name for b in batches for name in b.names]
        raise self._spoiled(", ".join(f"{name} {value:.4g}" for name, value in means.items()), mine)

    def _spoiled(self, what: str, names: list[str]) -> FailedTrainingError:
        """The error of a step whose outcome is not finite, and the items that all processes took it on."""
        return FailedTrainingError(
            f"Step {self.step} of {self._folder} gave {what} on {', '.join(self._processes.everyone(names))}. Look at "
            "these images, or lower the rate. The last checkpoint is kept: --resume goes on from it."
        )

    # What the outside hears

    def _report(self, metrics: dict[str, float], board: Any) -> None:
        self._tell(Event(self._task.name, self.step, self._recipe.steps, metrics=_rounded(metrics)))
        for name, value in metrics.items():
            if board:
                board.add_scalar(name, value, self.step)
        self._watch.add(next(v for name, v in metrics.items() if name.endswith("loss")), str(self._folder))

    def _tell(self, event: Event) -> None:
        if self._job:
            self._job.event(event)
            self._on_event(event)

    @contextmanager
    def _board(self) -> Iterator[Any]:
        """TensorBoard's writer, where TensorBoard is installed and this process writes."""
        writer = None
        if self._processes.is_first:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter

                # Steps of a broken run that no checkpoint remembers are told again.
                writer = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self.step + 1)
            except ImportError:
                pass
        try:
            yield writer
        finally:
            if writer:
                writer.close()

    # Validation

    def _validate(self, board: Any) -> None:
        """Figures and pictures with the averaged weights; each process takes its share of the held-out items."""
        if not self._task.validation_count() and self._on_validation is None:
            return
        mine = range(self._processes.index, self._task.validation_count(), self._processes.count)
        # Not inference_mode: what a task keeps from here (a frozen network on its device) must serve training, too.
        with self._averaged() as networks, torch.no_grad():
            figures = self._processes.means_of(self._task.validate_item(i, networks) for i in mine)
            files = self._on_validation(self.step, networks, self._folder) if self._job and self._on_validation else []
        if figures:
            message = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._tell(Event("validation", self.step, self._recipe.steps, message, _rounded(figures)))
        for file in files:
            self._tell(Event("picture", self.step, self._recipe.steps, file=file.relative_to(self._folder).as_posix()))
        for name, value in figures.items():
            if board:
                board.add_scalar(f"validation/{name}", value, self.step)
        self._figures = figures  # before they are judged: they are saved with the best weights
        if self._task.validation_count():
            self._judge(figures)

    def _judge(self, figures: dict[str, float]) -> None:
        """Keeps the weights that validated best."""
        wanted = self._recipe.best_metric
        if wanted is None:
            return
        if wanted not in figures:
            raise TrainingError(f"best_metric {wanted!r} is not measured here; there are {', '.join(figures)}.")
        if _finite([figures[wanted]]) and (self._best is None or figures[wanted] < self._best):
            self._best, self._since_best = figures[wanted], 0
            self._save(BEST_NAME)
        else:
            self._since_best += 1

    @contextmanager
    def _averaged(self) -> Iterator[dict[str, nn.Module]]:
        """The networks with their averaged weights, in evaluation mode, for the length of the block."""
        networks = self._task.networks
        own = {name: {k: v.clone() for k, v in n.state_dict().items()} for name, n in networks.items()}
        try:
            for name, network in networks.items():
                network.load_state_dict(self.averages[name].weights)
                network.eval()
            yield networks
        finally:
            for name, network in networks.items():
                network.load_state_dict(own[name])
                network.train()

    # Checkpoints

    def _optimizer(self, phase: str) -> torch.optim.Optimizer:
        parameters = [p for name in self._task.phases[phase] for p in self._task.networks[name].parameters()]
        kind = torch.optim.AdamW if self._recipe.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, lr=self._recipe.rate, weight_decay=self._recipe.weight_decay)

    def _saved(self, resume: bool) -> Checkpoint | None:
        path = self._folder / CHECKPOINT_NAME
        if self._processes.is_first and runs_elsewhere(self._folder):
            raise TrainingError(f"{self._folder} is being trained by another process. Stop that one, or wait for it.")
        if not path.exists():
            return None
        if not resume:
            raise TrainingError(f"{self._folder} holds a run. --resume goes on with it; another --out starts anew.")
        saved = read_checkpoint(path)
        check_resumable(saved.identity, run_identity(self._task, self._recipe), self._recipe, self._folder)
        return saved

    def _restore(self, saved: Checkpoint) -> None:
        for name, network in self._task.networks.items():
            network.load_state_dict(saved.networks[name])
            self.averages[name].restore(saved.averages[name], saved.step)
        for phase, optimizer in self._optimizers.items():
            optimizer.load_state_dict(saved.optimizers[phase])
        scaler = self._processes.accelerator.scaler
        if scaler is not None and saved.scaler is not None:
            scaler.load_state_dict(saved.scaler)
        self.step, self.position, self.seconds = saved.step, saved.position, saved.seconds
        self._best, self._since_best, self._figures = saved.best, saved.since_best, saved.figures
        self._watch.first = list(saved.first_losses)
        torch.set_rng_state(saved.torch_rng)

    def _save(self, name: str) -> None:
        """Writes the run as it is, in the first process."""
        if self._job is None:
            return
        scaler = self._processes.accelerator.scaler
        Checkpoint(
            identity=run_identity(self._task, self._recipe),
            networks={n: network.state_dict() for n, network in self._task.networks.items()},
            averages={n: average.weights for n, average in self.averages.items()},
            optimizers={phase: optimizer.state_dict() for phase, optimizer in self._optimizers.items()},
            step=self.step,
            position=self.position,
            seconds=self.seconds,
            best=self._best,
            since_best=self._since_best,
            first_losses=self._watch.first,
            scaler=scaler.state_dict() if scaler is not None else None,
            torch_rng=torch.get_rng_state(),
            figures=self._figures,
        ).write(self._folder / name)


def _finite(values: Any) -> bool:
    return all(abs(value) < float("inf") for value in values)  # false for NaN as well


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}
