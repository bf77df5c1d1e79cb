"""What each process of ``torchrun`` does in test_several_processes.py: ``two_processes.py FOLDER JSON``.

The JSON lists trainings that are done one after the other: ``name`` of the run, ``judged``, ``seconds`` that a step
takes at least, ``recipe``. Every process leaves its number in ``FOLDER/process-<rank>``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from MAISILib.cli.running import cancel_on_interrupt
from MAISILib.errors import MaisiError
from MAISILib.training.recipes import Recipe
from MAISILib.training.task import Tensors
from MAISILib.training.trainer import Trainer
from Testing.training.tiny_task import TinyTask


class SlowTask(TinyTask):
    seconds = 0.0

    def spoil(self, loss: torch.Tensor, batch: Tensors) -> torch.Tensor:
        time.sleep(self.seconds)
        return loss


def main() -> int:
    folder = Path(sys.argv[1])
    (folder / f"process-{os.environ['RANK']}").write_text(str(os.getpid()))
    for run in json.loads(sys.argv[2]):
        task = SlowTask(6, judged=run["judged"], validation=3)
        task.seconds = run["seconds"]
        with cancel_on_interrupt() as cancel:
            try:
                recipe = Recipe(**run["recipe"])
                Trainer(task, recipe, folder / run["name"], resume=True, device="auto", cancel=cancel).run()
            except MaisiError as error:
                print(f"maisi: {error}", file=sys.stderr)
                return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
