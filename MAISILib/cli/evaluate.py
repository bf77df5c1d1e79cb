"""``maisi evaluate``: measures images, one subcommand for each question."""

from __future__ import annotations

import typer

from MAISILib.cli import evaluate_codec, evaluate_fid, evaluate_novelty, evaluate_quality, evaluate_tables

app = typer.Typer(help="Measure images: are they like real ones, do they fit their masks?", no_args_is_help=True)
app.command("fid")(evaluate_fid.run)
app.command("quality")(evaluate_quality.run)
app.command("novelty")(evaluate_novelty.run)
app.command("codec")(evaluate_codec.run)
app.command("tables")(evaluate_tables.run)
