"""``fastfss eval --protocol davis``: J and F of a method that follows objects through videos."""

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
from fastfss.data.videos import VideoSet, open_davis
from fastfss.interactive.refinement import RefinementName
from fastfss.methods import FewShotSegmenter
from fastfss.protocols.davis import evaluate_davis
from fastfss.protocols.davis_interactive import evaluate_interactive

INTERACTIVE = "davis-interactive"
ABOUT_INTERACTIVE = "the same from scribbles, eight rounds: AUC and J&F after 60 s"
ABOUT = "videos from the masks of their first frames: J, F, J&F and their decay (see docs/video.md)"
YEARS = {"davis2016": 2016, "davis2017": 2017}


def open_videos(kind: str | None, data: Path, part: str | None) -> VideoSet:
    """The sequences of --set, --data and --part."""
    year = YEARS.get(kind or "davis2017")
    if year is None:
        raise typer.BadParameter(f"--set: expected one of {', '.join(YEARS)}, got {kind}")
    return open_davis(data, part or "val", year)


def run_davis(
    model: FewShotSegmenter,
    videos: VideoSet,
    about: Mapping[str, Any],
    *,
    size: int,
    count: int | None,
    refinement: RefinementName,
    out: Path,
) -> None:
    """Evaluate and write results.json.

    Args:
        model: in eval mode.
        videos: the sequences.
        about: what decides the figures besides, for the file.
        size: pixels of the shorter side.
        count: so many sequences, the first; None: all.
        refinement: of the session.
        out: the folder.
    """
    chosen = dict(list(videos.videos.items())[:count])
    total = sum(max(video.annotations) for video in chosen.values())
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("frames", total=total)
        report = evaluate_davis(
            model,
            chosen,
            size=size,
            refinement=refinement,
            progress=partial(bar.update, task, advance=1),
        )
    plain = {
        "protocol": "davis",
        "fastfss": fastfss.__version__,
        **about,
        "shorter_side": size,
        "refinement": refinement,
        "weights_digest": model.fingerprint(),
        "set": {"kind": videos.name, "part": videos.part, "sequences": len(chosen)},
        **report.to_dict(),
    }
    write_text_atomically(out / "results.json", json.dumps(plain, indent=2) + "\n")
    width = max(map(len, report.by_sequence()))
    typer.echo(f"{'':{width}}  J&F    J      F      decay of J")
    for name, found in [*report.by_sequence().items(), ("mean", report.figures)]:
        row = f"{found['J&F']:.3f}  {found['J']:.3f}  {found['F']:.3f}  {found['J_decay']:+.3f}"
        typer.echo(f"{name:{width}}  {row}")
    typer.echo(f"{report.fps:.1f} frames a second; results: {out / 'results.json'}")


def run_interactive(
    model: FewShotSegmenter,
    videos: VideoSet,
    about: Mapping[str, Any],
    *,
    size: int,
    count: int | None,
    out: Path,
) -> None:
    """Run DAVIS's interactive loop and write results.json; as `run_davis`."""
    chosen = dict(list(videos.videos.items())[:count])
    scribbles = videos.root / "Scribbles"
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("rounds", total=None)
        report = evaluate_interactive(
            model,
            chosen,
            scribbles=scribbles if scribbles.is_dir() else None,
            size=size,
            progress=partial(bar.update, task, advance=1),
        )
    plain = {
        "protocol": INTERACTIVE,
        "fastfss": fastfss.__version__,
        **about,
        "shorter_side": size,
        "first_scribbles": "DAVIS" if scribbles.is_dir() else "simulated",
        "weights_digest": model.fingerprint(),
        "set": {"kind": videos.name, "part": videos.part, "sequences": len(chosen)},
        **report.to_dict(),
    }
    write_text_atomically(out / "results.json", json.dumps(plain, indent=2) + "\n")
    for number, (seconds, score) in enumerate(report.curve, start=1):
        typer.echo(f"round {number}: J&F {score:.3f} after {seconds:.1f} s")
    typer.echo(f"AUC {report.auc:.3f}, J&F@60s {report.at():.3f}; {out / 'results.json'}")
