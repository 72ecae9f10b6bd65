"""``fastfss predict``: a few annotated images in, masks of new images out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer
from rich.console import Console

from fastfss.annotation import Annotation, Unsaid
from fastfss.atomic import check_writable
from fastfss.cli.making import (
    check_device,
    chosen_method,
    engine_method,
    inference_model,
    method_options,
)
from fastfss.cli.marks import Shot, read_marks, read_shot
from fastfss.cli.options import (
    BackboneOption,
    BackendOption,
    DebugOption,
    DeviceOption,
    EngineOption,
    LayersOption,
    LongerSideOption,
    MethodOptions,
    OverwriteOption,
    RefineOption,
    ThreadsOption,
    WeightsOption,
    layer_names,
    one_of,
)
from fastfss.cli.prediction_folder import REPORT, PendingQuery, PredictionFolder
from fastfss.cli.prediction_run import Model, progress_bar, segment_queries
from fastfss.cli.prediction_settings import PredictionSettings, TextSettings, Way
from fastfss.cli.queries import find_queries
from fastfss.data import read_support_folder
from fastfss.engines import load
from fastfss.errors import expected, import_extra
from fastfss.methods import create_model
from fastfss.task import Task
from fastfss.text import Label, TextLabels, label_names, load_clip

_FAILED, _INTERRUPTED = 1, 130


def build_model(
    settings: PredictionSettings, device: str, backend: str = "auto", *, images: int | None = None
) -> Model:
    """Make the model or engine that the settings describe, ready to predict on the device.

    Args:
        settings, device, backend: of the command.
        images: see `inference_model`.
    """
    text = None if settings.text is None else _text_labels(settings.text, device)
    if settings.engine is not None:
        engine = load(settings.engine, backend, device=device)
        if text is not None:
            engine.model.text = text
        return engine
    model = create_model(
        settings.method,
        encoder=settings.backbone,
        layers=settings.layers,
        weights=settings.weights,
        size=settings.size,
        **settings.options,
    )
    model = inference_model(model, device, backend, images=images)
    model.text = text
    return model


def _text_labels(settings: TextSettings, device: str) -> TextLabels:
    others = label_names(settings.others)
    return load_clip(settings.clip, device=device, others=others, threshold=settings.threshold)


def predict(
    out: Annotated[Path | None, typer.Option(help="The folder for the results.")] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|FOLDER|PATTERN ...",
            help="Images to segment; a folder stands for the images in it.",
        ),
    ] = None,
    support: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="IMAGE MASK ...",
            help="Annotated images of one class; instead of a mask an annotation's .json file, or, "
            "for one image, what --click, --scribble and --box say.",
        ),
    ] = None,
    click: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y ...",
            help="Pixels of the object in the --support image; -X,Y is background.",
        ),
    ] = None,
    scribble: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,X,Y,... ...", help="Strokes likewise; -X,Y,... is on the background."
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEFT,TOP,RIGHT,BOTTOM ...",
            help="Boxes likewise; what is outside of all is background.",
        ),
    ] = None,
    unsaid: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(get_args(Unsaid)),
            help="What pixels are of which clicks and the like say nothing.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the --support images show, in place of masks: CLIP finds it. Needs --clip.",
        ),
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CLIP's weights for --label: RN50.pt.")
    ] = None,
    others: Annotated[
        str, typer.Option(metavar="coco|pascal|FILE", help="Names that --label competes with.")
    ] = "coco",
    label_threshold: Annotated[
        float, typer.Option(help="What share of the label's activation makes its mask.")
    ] = 0.5,
    support_folder: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER ...",
            help="A class each, named as its folder; masks beside images (1.jpg, 1_mask.png) or in "
            "images/ and masks/.",
        ),
    ] = None,
    task: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE ...", help="Classes saved with --save-task."),
    ] = None,
    save_task: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Save the class of the annotated images for later runs.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call the class of --support; else 'object'.")
    ] = None,
    value: Annotated[
        int | None,
        typer.Option(min=0, help="The class's label, where masks are label maps of several."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="The segmentation method; else 'default', the package's own model, or ssp with a "
            "--backbone or --weights.",
            show_default=False,
        ),
    ] = None,
    backbone: BackboneOption = None,
    layers: LayersOption = None,
    weights: WeightsOption = None,
    size: LongerSideOption = None,
    refine: RefineOption = None,
    option: MethodOptions = None,
    engine: EngineOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Segment images after a few annotated examples.

    Each query gets NAME_mask.png (a label map) and NAME_overlay.png in the output folder, and an
    entry in predictions.json. The same command again goes on where the last run stopped.

    Example: fastfss predict --support cow1.jpg cow1.png --query photos --out results
    """
    if bool(query) != (out is not None):
        raise typer.BadParameter("--query and --out belong together; got only one of them")
    if not query and save_task is None:
        raise typer.BadParameter("nothing to do: expected --query and --out, or --save-task")
    given: dict[str, object] = {"--method": method, "--backbone": backbone, "--layers": layers}
    given |= {"--weights": weights, "--size": size, "--option": option, "--refine": refine}
    method = engine_method(engine, backend, given) or method
    if label is not None and clip is None:
        raise typer.BadParameter("--label needs --clip, the file of CLIP's weights")
    settings = PredictionSettings(
        method=method or chosen_method(backbone, weights),
        backbone=backbone,
        layers=layer_names(layers),
        weights=weights,
        size=size,
        options=method_options(option or [], refine),
        value=value,
        ways=_ways(
            support_shots(support or [], read_marks(click or [], scribble or [], box or []), label),
            name or label,
            support_folder or [],
            task or [],
            value,
        ),
        unsaid=None if unsaid is None else one_of("--unsaid", unsaid, get_args(Unsaid)),
        engine=engine,
        text=None if clip is None else TextSettings(clip, others, label_threshold),
    )
    check_device(device)
    _check_save_task(save_task, settings.ways)
    if threads is not None:
        torch.set_num_threads(threads)
    if out is None:
        settings.record()  # a missing file is found before the model is loaded
        _prepare(settings, device, save_task, backend, 0)
        return
    import_extra("pycocotools.mask", extra="cli", purpose="fastfss predict")
    queries = find_queries(query or [])
    if out.exists() and any(folder.samefile(out) for folder in {file.parent for file in queries}):
        raise expected("--out", "another folder than that of the queries", f"'{out}'")
    with PredictionFolder(out, settings.record(), overwrite=overwrite) as folder:
        code = _run(folder, queries, settings, device, save_task, backend)
    raise typer.Exit(code)


def _run(
    folder: PredictionFolder,
    queries: Sequence[Path],
    settings: PredictionSettings,
    device: str,
    save_task: Path | None,
    backend: str,
) -> int:
    """Segment what is left to do, and return the exit code."""
    console = Console(stderr=True, highlight=False, emoji=False)
    pending = folder.plan(queries)
    # Whatever is wrong with model, support or tasks comes out before anything is written.
    prepared = (
        _prepare(settings, device, save_task, backend, len(queries))
        if pending or save_task is not None
        else None
    )
    folder.begin(len(pending))
    failed: list[dict[str, str]] = []
    code = 0
    progress = progress_bar(console)
    with progress if console.is_terminal else nullcontext():
        bar = progress.add_task(
            "segmenting", total=len(queries), completed=len(queries) - len(pending)
        )

        def on_done(query: PendingQuery, error: Exception | None) -> None:
            progress.advance(bar)
            if error is not None:
                failed.append({"file": str(query.path), "error": str(error)})
                console.print(f"failed: {error}", markup=False, soft_wrap=True)

        try:
            if prepared is not None:
                segment_queries(*prepared, pending, folder, on_done)
        except KeyboardInterrupt:
            code = _INTERRUPTED
        except BaseException:
            # What is done stays done, also when the disk is full.
            with suppress(OSError):
                folder.report(failed=failed, pending=folder.count_missing(queries) - len(failed))
            raise
    missing = folder.count_missing(queries)
    folder.report(failed=failed, pending=missing - len(failed))
    done = len(queries) - missing
    typer.echo(
        f"{len(queries)} images: {done - (len(queries) - len(pending))} segmented, "
        f"{len(queries) - len(pending)} done before, {len(failed)} failed -> {folder.path / REPORT}"
    )
    if code == _INTERRUPTED:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
    return code or (_FAILED if failed else 0)


def _prepare(
    settings: PredictionSettings, device: str, save_task: Path | None, backend: str, images: int
) -> tuple[Model, list[Task]]:
    """Load the model, and make or load one task a way."""
    model = build_model(settings, device, backend, images=images)
    tasks = []
    for way in settings.ways:
        if way.task is not None:
            tasks.append(load_task(model, way.task, device))
            continue
        shots = [read_shot(shot, model.point_width, settings.unsaid) for shot in way.shots]
        fitted = model.fit(shots, name=way.name or "object", mask_value=settings.value)
        if save_task is not None:
            fitted.save(save_task)
        tasks.append(fitted)
    return model, tasks


def load_task(model: Model, file: Path, device: str) -> Task:
    """A saved task on the device; ValueError where it is of another model."""
    task = Task.load(file)
    model.check_task(task)
    return task.to(device)


def support_shots(
    files: Sequence[Path], said: Annotation | None, label: str | None = None
) -> tuple[Shot, ...]:
    """The shots of --support: pairs of image and mask, or images with what is said of them.

    Args:
        files: of --support.
        said: by --click and the like; of one image.
        label: of --label; of all images.
    """
    if label is not None:
        if said is not None:
            raise typer.BadParameter("--label stands for --click, --scribble and --box; got both")
        if not files:
            raise typer.BadParameter("--label says what --support shows; got no --support")
        return tuple((file, Label(label)) for file in files)
    if said is not None:
        if len(files) != 1:
            raise typer.BadParameter(
                "--click, --scribble and --box annotate one image, the only one of --support; "
                f"got {len(files)} files"
            )
        return ((files[0], said),)
    if len(files) % 2:
        raise typer.BadParameter(f"--support: expected images and masks, got {len(files)} files")
    return tuple(zip(files[::2], files[1::2], strict=True))


def _ways(
    shots: tuple[Shot, ...],
    name: str | None,
    support_folders: Sequence[Path],
    tasks: Sequence[Path],
    value: int | None,
) -> tuple[Way, ...]:
    """Put the classes in order: --support, the --support-folders, the --tasks."""
    if name is not None and not shots:
        raise typer.BadParameter("--name names the class of --support; got no --support")
    if value is not None and not (shots or support_folders):
        raise typer.BadParameter("--value reads masks; got no --support or --support-folder")
    ways = [Way(name or "object", shots)] if shots else []
    ways += [
        Way(folder.absolute().name, tuple(read_support_folder(folder)))
        for folder in support_folders
    ]
    ways += [Way(task=file) for file in tasks]
    if not ways:
        raise typer.BadParameter("expected --support, --support-folder or --task, got none")
    return tuple(ways)


def _check_save_task(save_task: Path | None, ways: Sequence[Way]) -> None:
    if save_task is None:
        return
    if sum(way.task is None for way in ways) != 1:
        raise typer.BadParameter(
            "--save-task saves one class; expected one set of annotated images"
        )
    if save_task.is_dir():
        raise expected("--save-task", "a file", f"the folder '{save_task}'")
    check_writable(save_task.absolute().parent, "--save-task")
