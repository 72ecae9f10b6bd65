"""``fastfss train``: train a method as a recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastfss.cli.options import DebugOption


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name (--list shows them) or a TOML file.")
    ] = "",
    data: Annotated[Path | None, typer.Option(help="The folder of the data set.")] = None,
    fold: Annotated[int | None, typer.Option(help="Which classes are held out.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE|imagenet|random", help="What the model starts from."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/RECIPE-foldN.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in OUT, if any.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    progress: Annotated[str, typer.Option(metavar="auto|bar|lines|off")] = "auto",
    show: Annotated[
        bool, typer.Option("--show", help="Print the recipe with all its settings and stop.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Print the recipes and stop.")] = False,
    debug: DebugOption = False,
) -> None:
    """Train a method as a recipe says.

    Several GPUs: torchrun --nproc-per-node N -m fastfss train RECIPE ...; the effective batch stays
    the recipe's. A killed run goes on with --resume.
    """
    from fastfss.training import list_recipes, load_recipe
    from fastfss.training import train as run
    from fastfss.training.logs import checked_progress
    from fastfss.training.recipe_files import flat

    if list_:
        known = list_recipes()
        width = max(map(len, known))
        for name, about in known.items():
            typer.echo(f"{name:{width}}  {about}")
        return
    if not recipe:
        raise typer.BadParameter("expected a recipe's name or a TOML file (--list shows them)")
    changes = list(settings or [])
    for key, value in (("data.root", data), ("data.fold", fold), ("model.weights", weights)):
        if value is not None:
            changes.append(f"{key}={json.dumps(str(value)) if key != 'data.fold' else value}")
    loaded = load_recipe(recipe, changes)
    if show:
        for key, value in flat(loaded).items():
            typer.echo(f"{key} = {json.dumps(value)}")
        return
    folder = out or Path("runs") / f"{Path(recipe).stem}-fold{loaded.data.fold}"
    result = run(loaded, folder, resume=resume, device=device, progress=checked_progress(progress))
    if result.miou:
        step, miou = max(result.miou, key=lambda pair: pair[1])
        typer.echo(f"held-out mIoU: {result.miou[-1][1]:.2f} at the end, {miou:.2f} at step {step}")
    typer.echo(f"weights: {result.weights}")
    if result.best is not None:
        typer.echo(f"best weights: {result.best}")
