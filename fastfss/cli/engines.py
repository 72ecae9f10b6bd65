"""``fastfss engines``: what engine folders are, and whether engines compute what PyTorch does."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from fastfss.atomic import check_writable, write_text_atomically
from fastfss.cli.export import image_size
from fastfss.cli.options import DebugOption, ThreadsOption, one_of
from fastfss.engines.choice import LIBRARIES, cpu_name
from fastfss.engines.manifest import PRECISIONS

if TYPE_CHECKING:
    from fastfss.engines.verify import Verification

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
    app.command("build")(build)
    return app


def verify_command(
    folder: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR ...]", help="Of fastfss export; else methods are exported."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Which to export, without a DIR; repeatable. Else the main ones."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="fp32|fp16|bf16", help="Of what is exported; repeatable. Else fp32."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Of what is exported; else the published.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Which; repeatable. By default all that do not compile for minutes."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: ThreadsOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write all that was found.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Run every engine that serves here, and compare it with PyTorch in float32.

    Without a folder methods are exported with random weights and removed afterwards. The exit code
    is 1 if an engine fails, or one that computes in float32 differs by more than rounding.

    Example: fastfss engines verify --device cuda --backend tensorrt --out tensorrt.json
    """
    from fastfss.engines.verify import METHODS, verify, verify_method

    if folder and (method or precision or size):
        raise typer.BadParameter("--method, --precision and --size export; got folders too")
    if out is not None:
        check_writable(out.absolute().parent, "--out")
    if threads is not None:
        torch.set_num_threads(threads)
    found: dict[str, list[Verification]] = {}

    def told(name: str, results: list[Verification]) -> None:
        found[name] = results
        if not as_json:
            typer.echo("\n".join([name, *(f"  {one}" for one in results)]))

    for one in folder or []:
        told(str(one), verify(one, device=device, backends=backend))
    with tempfile.TemporaryDirectory() as work:
        for name, low in product(method or METHODS, precision or ["fp32"]) if not folder else ():
            results = verify_method(
                name,
                Path(work) / f"{name}-{low}",
                size=None if size is None else image_size(size, None),
                precision=one_of("--precision", low, PRECISIONS),
                device=device,
                backends=backend,
            )
            told(f"{name} {low}", results)
    report = {
        "machine": machine(),
        "engines": {name: [asdict(one) for one in results] for name, results in found.items()},
    }
    if out is not None:
        write_text_atomically(out, json.dumps(report, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    if not all(one.passed for results in found.values() for one in results):
        raise typer.Exit(_FAILED)


def build(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR ...", help="Of fastfss export.")],
    capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8.9",
            help="Of the GPUs that will run it, a plan each; repeatable. Else one for all of them.",
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Build the plans of TensorRT for RTX ahead, on any machine: no GPU is needed.

    They lie in the folder. A GPU that loads one compiles its kernels then, and keeps them there.

    Example: fastfss engines build engine --capability 8.9
    """
    from fastfss.engines.tensorrt import build_ahead

    for folder in folders:
        for one in build_ahead(folder, capabilities=capability or ()):
            typer.echo(f"{folder}: {one}")


def machine() -> dict[str, str]:
    """The CPU, the GPU, and versions of what runs engines."""
    told = {"cpu": cpu_name(), "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        told["gpu"] = torch.cuda.get_device_name()
    for name in ("fastfss", *LIBRARIES):
        with suppress(metadata.PackageNotFoundError):
            told[name] = metadata.version(name)
    return told


def show(folder: FolderArgument, debug: DebugOption = False) -> None:
    """Print what a folder holds: method, sizes, tensors, precision, what the export found."""
    from fastfss.engines.manifest import Manifest

    typer.echo(str(Manifest.read(folder)))
