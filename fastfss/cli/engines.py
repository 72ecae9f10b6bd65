"""``fastfss engines``: what engine folders are, and whether engines compute what PyTorch does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastfss.cli.options import DebugOption

_FAILED = 1

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Of fastfss export.")]


def make_engines_app() -> typer.Typer:
    """The commands below ``fastfss engines``."""
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Engines: exported methods, and what runs them.",
    )
    app.command("verify")(verify_command)
    app.command("show")(show)
    return app


def verify_command(
    folder: FolderArgument,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Which; repeatable. By default all that do not compile for minutes."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON list.")] = False,
    debug: DebugOption = False,
) -> None:
    """Run every engine that serves a folder here, and compare it with PyTorch in float32.

    The exit code is 1 if one that computes in float32 differs by more than rounding.
    """
    from fastfss.engines.verify import verify

    if threads is not None:
        torch.set_num_threads(threads)
    found = verify(folder, device=device, backends=backend)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
    else:
        for one in found:
            typer.echo(str(one))
    if not all(one.passed for one in found):
        raise typer.Exit(_FAILED)


def show(folder: FolderArgument, debug: DebugOption = False) -> None:
    """Print what a folder holds: method, sizes, tensors, precision, what the export found."""
    from fastfss.engines.manifest import Manifest

    typer.echo(str(Manifest.read(folder)))
