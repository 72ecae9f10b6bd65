"""``fastfss eval --protocol clicks``: NoC of a method in an interactive session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

import fastfss
from fastfss.atomic import write_text_atomically
from fastfss.cli.prediction_run import progress_bar
from fastfss.data.sets import MaskSet
from fastfss.interactive import get_refinement
from fastfss.interactive.refinement import RefinementName
from fastfss.methods import FewShotSegmenter
from fastfss.protocols.clicks import by_session, evaluate_clicks, objects_of

ABOUT = "clicks of the simulated annotator on each object: NoC@80, 85, 90 (see docs/interactive.md)"


def run_clicks(
    model: FewShotSegmenter,
    images: MaskSet,
    about: Mapping[str, Any],
    *,
    count: int | None,
    seed: int,
    refinement: RefinementName,
    out: Path,
) -> None:
    """Evaluate and write results.json.

    Args:
        model: in eval mode.
        images: the set; each class of each image is an object.
        about: what decides the figures besides, for the file.
        count: so many objects, drawn by `seed`; None: all.
        seed: see count.
        refinement: of the session.
        out: the folder.
    """
    get_refinement(refinement)  # what is missing shows before any work
    objects = objects_of(images, count=count, seed=seed)
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("objects", total=len(objects))
        advance = partial(bar.update, task, advance=1)
        report = evaluate_clicks(by_session(model, refinement), images, objects, progress=advance)
    plain = {
        "protocol": "clicks",
        "fastfss": fastfss.__version__,
        **about,
        "refinement": refinement,
        "seed": seed,
        "weights_digest": model.fingerprint(),
        "set": {"kind": images.name, "digest": images.digest, "images": len(images.items)},
        **report.to_dict(),
    }
    write_text_atomically(out / "results.json", json.dumps(plain, indent=2) + "\n")
    for threshold, clicks in report.noc.items():
        failed = report.failures[threshold]
        typer.echo(f"NoC@{threshold}: {clicks:.2f} ({failed} of {report.objects} never)")
    typer.echo(f"{1e3 * report.seconds_per_click:.0f} ms a click; results: {out / 'results.json'}")
