"""The ``maisi`` command: declares subcommands, turns errors into messages and exit codes. No logic lives here."""

from __future__ import annotations

import sys
from typing import Any

import typer

from MAISILib.cli import bundles, demo, encode, evaluate, finetune, generate, mask, plan, train, worker
from MAISILib.errors import Cancelled, MaisiError

#: What typer raises for wrong usage: click's class, or since typer has its own copy of click, that one's.
_UsageProblem: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    name="maisi",
    help="Synthetic CT and MR volumes with matching segmentations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.run)
app.command("plan")(plan.run)
app.command("demo")(demo.run)
app.command("encode")(encode.run)
app.command("train")(train.run)
app.command("finetune")(finetune.run)
app.command("worker")(worker.run)
app.add_typer(bundles.app, name="bundles")
app.add_typer(mask.app, name="mask")
app.add_typer(evaluate.app, name="evaluate")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        from MAISILib import __version__

        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 2 for bad input, 3 for a failed run, 130 for cancelled."""
    try:
        result = app(args=arguments, standalone_mode=False)
    except MaisiError as error:
        typer.echo(f"maisi: {error}", err=True)
        return error.exit_code
    except _UsageProblem as error:
        error.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        typer.echo(f"maisi: {Cancelled('Cancelled. Nothing was left half-written.')}", err=True)
        return Cancelled.exit_code
    except MemoryError:
        typer.echo("maisi: memory ran out. Ask for a smaller size.", err=True)
        return MaisiError.exit_code
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
