"""``fastfss export``: a method as two graphs for other programs to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastfss.cli.making import chosen_method, method_options
from fastfss.cli.options import (
    BackboneOption,
    DebugOption,
    LayersOption,
    MethodOptions,
    WeightsOption,
    layer_names,
    one_of,
)
from fastfss.cli.queries import find_queries
from fastfss.data import read_support_folder
from fastfss.engines.manifest import PRECISIONS
from fastfss.errors import import_extra
from fastfss.methods import create_model
from fastfss.methods.named_models import NAMED_MODELS

_CALIBRATION = 64  # images at most: more change the ranges little, and each is encoded


def export(
    out: Annotated[Path, typer.Option(help="The engine's folder.")],
    method: Annotated[
        str | None,
        typer.Option(help="The segmentation method; else default, or ssp with --backbone."),
    ] = None,
    backbone: BackboneOption = None,
    layers: LayersOption = None,
    weights: WeightsOption = None,
    option: MethodOptions = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Of the images; else the method's published size."),
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Images of other sizes too; slower in some engines.")
    ] = False,
    shots: Annotated[int, typer.Option(min=1, help="Support images of a class.")] = 1,
    ways: Annotated[int, typer.Option(min=1, help="Classes segmented at once.")] = 1,
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16|bf16|int8", help="Of the encoder's arithmetic.")
    ] = "fp32",
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|FOLDER|PATTERN ...",
            help="Images like those to come, of which int8 takes its ranges.",
        ),
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER ...",
            help="Annotated images, a folder a class: what a low precision costs is measured.",
        ),
    ] = None,
    aot: Annotated[
        bool,
        typer.Option(
            "--aot-inductor", help="Also compile for this machine's C++ programs (.pt2 files)."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an engine folder that is there.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Export a method as encode.onnx and match.onnx, checked against PyTorch.

    Example: fastfss export --method ssp --weights ssp.pth --size 473x473 --shots 5 --out engine
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, extra="onnx", purpose="fastfss export")
    from fastfss.engines.accuracy import CheckClass
    from fastfss.engines.examples import ExportSettings
    from fastfss.engines.export import export_engine

    method = method or chosen_method(backbone, weights)
    options = method_options(option or [], None)
    # Those of a name are told too: the folder's engines are made of the method and its options.
    named = NAMED_MODELS[method].options if method in NAMED_MODELS else {}
    model = create_model(
        method,
        encoder=backbone,
        layers=layer_names(layers),
        weights=weights,
        size=None,
        **options,
    )
    own = model.size if isinstance(model.size, int) else model.default_size
    sides, told = image_size(size, own), {**named, **options}
    settings = ExportSettings(
        sides, shots, ways, dynamic, one_of("--precision", precision, PRECISIONS), options=told
    )
    manifest = export_engine(
        model,
        out,
        settings,
        calibration=find_queries(calibrate or [], "--calibrate")[:_CALIBRATION],
        check_set=[CheckClass(f.absolute().name, read_support_folder(f)) for f in check or []],
        aot_inductor=aot,
        overwrite=overwrite,
        report=typer.echo,
    )
    shown = " x ".join(map(str, manifest.image_size))
    typer.echo(
        f"{manifest.method}, {manifest.precision}, {shown}, {shots} shots, {ways} ways -> {out}"
    )


def image_size(text: str | None, default: int | None) -> tuple[int, int]:
    """Height and width of "HxW" or of one number for both.

    Args:
        text: of --size; None takes the default.
        default: the model's.

    Raises:
        typer.BadParameter: another text, or none where the method has no size of its own.

    Examples:
        >>> image_size("480x640", None)
        (480, 640)
    """
    if text is None:
        if default is None:
            raise typer.BadParameter(
                "--size: expected HxW, because this method has no size, got none"
            )
        return default, default
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"--size: expected HxW in pixels, such as 473x473, got {text!r}")
    return int(sides[0]), int(sides[-1])
