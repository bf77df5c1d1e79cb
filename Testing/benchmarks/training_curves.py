"""Curves of trainings that went on from one another: loss against steps, from the events in their folders.

``python Testing/benchmarks/training_curves.py RUN [RUN ...] --out PICTURE.png [--metric loss]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from MAISILib.jobs.folder import Event, read_events

#: Points of the smoothed curve look back over so many events.
SMOOTHED = 50


def read_curve(run: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a training, the newest where a step was done twice after a resume."""
    events: dict[int, Event] = {}
    for event in read_events(run):
        if metric in event.metrics and event.stage != "validation":
            events[event.done] = event
    steps = sorted(events)
    return steps, [events[step].metrics[metric] for step in steps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--metric", default="loss")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    given = parser.parse_args()
    if not given.runs:
        print("needs the folder of a training")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    before = 0
    for run in given.runs:
        steps, values = read_curve(run, given.metric)
        at = np.asarray(steps) + before
        smooth = [float(np.mean(values[max(0, i - SMOOTHED + 1) : i + 1])) for i in range(len(values))]
        (line,) = axes.plot(at, smooth, label=run.name)
        axes.plot(at, values, color=line.get_color(), alpha=0.15, linewidth=0.5)
        before = int(at[-1])
    axes.set(xlabel="steps", ylabel=given.metric, ylim=(0, None))
    axes.legend()
    figure.savefig(given.out, dpi=90)
    print(given.out)


if __name__ == "__main__":
    main()
