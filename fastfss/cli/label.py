"""``fastfss label``: masks of any number of images, by many processes, resumable by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from fastfss.cli.label_folder import LabelFolder
from fastfss.cli.label_formats import FAILED, FORMATS, read_formats
from fastfss.cli.label_images import find_label_images
from fastfss.cli.label_ray import run_on_cluster
from fastfss.cli.label_shard import LabelJob, Outcome, Shard
from fastfss.cli.label_workers import Watch, core_count, run_here, worker_devices
from fastfss.cli.making import (
    MANY,
    check_device,
    chosen_method,
    engine_method,
    method_options,
    prepare_encoder,
)
from fastfss.cli.options import (
    BackboneOption,
    BackendOption,
    DebugOption,
    EngineOption,
    LayersOption,
    LongerSideOption,
    MethodOptions,
    OverwriteOption,
    RefineOption,
    WeightsOption,
    layer_names,
)
from fastfss.cli.predict import build_model
from fastfss.cli.prediction_run import progress_bar
from fastfss.cli.prediction_settings import PredictionSettings, Way
from fastfss.methods import FewShotSegmenter
from fastfss.task import Task

_FAILED, _INTERRUPTED = 1, 130
# Seconds between the lines that stand for the bar where there is no terminal.
_TELL = 60.0

# Labels shards, and tells of it.
Runner = Callable[[Sequence[Shard], Watch], None]


def label(
    images: Annotated[
        list[str],
        typer.Option(
            metavar="FOLDER|PATTERN|FILE.tar ...",
            help="What to label: folders with their subfolders, patterns, WebDataset shards.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the results.")],
    task: Annotated[
        list[Path],
        typer.Option(metavar="FILE ...", help="Classes saved by fastfss predict --save-task."),
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar=f"{','.join(FORMATS)}",
            help="What to write; else masks and coco. parquet needs fastfss[parquet].",
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images a shard; else 256, or fewer that give each worker 8 shards."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; else one a core, or one a GPU.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="As the tasks were made with; else as predict.", show_default=False),
    ] = None,
    backbone: BackboneOption = None,
    layers: LayersOption = None,
    weights: WeightsOption = None,
    size: LongerSideOption = None,
    refine: RefineOption = None,
    option: MethodOptions = None,
    engine: EngineOption = None,
    backend: BackendOption = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each worker.")] = 1,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|cuda:1", help="cuda: one worker a GPU.")
    ] = "auto",
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="Run on a Ray cluster (fastfss[ray]); --images and --out on a shared disk.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Label any number of images with saved tasks, on all cores or GPUs.

    The images are cut into shards; each is written whole or not at all, whatever is killed. The
    same command again goes on where the last run stopped. docs/scale.md says what it costs.

    Example: fastfss label --task cat.safetensors --images photos --out labels
    """
    given: dict[str, object] = {"--method": method, "--backbone": backbone, "--layers": layers}
    given |= {"--weights": weights, "--size": size, "--option": option, "--refine": refine}
    method = engine_method(engine, backend, given) or method
    settings = PredictionSettings(
        method=method or chosen_method(backbone, weights),
        backbone=backbone,
        layers=layer_names(layers),
        weights=weights,
        size=size,
        options=method_options(option or [], refine),
        value=None,
        ways=tuple(Way(task=file) for file in task),
        engine=engine,
    )
    chosen = read_formats(formats or ["masks", "coco"])
    if cluster is None and device != "auto":
        check_device(device)
    elif cluster is not None and device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"--device: expected auto, cpu or cuda of --cluster, got {device}")
    record = {**settings.record(), "formats": list(chosen)}
    names = [Task.load(file).name for file in task]
    found = find_label_images(images)
    outside = out.absolute()
    for image in found:
        if Path(image.path).is_relative_to(outside):
            raise typer.BadParameter(f"--out: expected a folder without --images, got '{out}'")
    if cluster is None:
        devices = worker_devices(device, workers)
        workers = len(devices)
    if engine is None and backend == "auto":
        if len(found) < MANY:
            backend = "eager"
        elif cluster is None and set(devices) == {"cpu"}:
            backend = _encoder_backend(settings, threads)
    job = LabelJob(outside, chosen, settings, backend, threads)
    if cluster is None:
        run: Runner = partial(run_here, job, devices)
    else:
        run = partial(run_on_cluster, cluster, job, device, workers, threads)
    with LabelFolder(
        outside,
        found,
        record,
        shard_size=shard_size,
        workers=workers or core_count(),
        overwrite=overwrite,
    ) as folder:
        code = _run(folder, names, len(found), run)
    raise typer.Exit(code)


def _encoder_backend(settings: PredictionSettings, threads: int) -> str:
    """What is to run the encoder: the same in all workers, which find it prepared."""
    torch.set_num_threads(threads)
    model = build_model(settings, "cpu")
    assert isinstance(model, FewShotSegmenter)
    return prepare_encoder(model)


def _run(folder: LabelFolder, names: Sequence[str], images: int, run: Runner) -> int:
    """Label the shards that are not done, put the results together, and return the exit code."""
    console = Console(stderr=True, highlight=False, emoji=False)
    pending = folder.pending()
    before = images - sum(len(shard.images) for shard in pending)
    outcomes: list[Outcome] = []
    progress = progress_bar(console, "images")
    lines = _Lines(images, before, None if console.is_terminal else console)

    def on_ready(warnings: Sequence[str]) -> None:
        # Whatever is wrong with the model or the tasks has come out by now.
        folder.begin()
        for warning in warnings:
            console.print(f"warning: {warning}", markup=False, soft_wrap=True)

    def on_images(count: int) -> None:
        progress.advance(bar, count)
        lines.advance(count)

    def on_death(text: str) -> None:
        console.print(f"{text}; another one goes on", markup=False, soft_wrap=True)

    interrupted = False
    started = time.perf_counter()
    with progress if console.is_terminal else nullcontext():
        bar = progress.add_task("labelling", total=images, completed=before)
        try:
            if pending:
                run(pending, Watch(on_ready, on_images, outcomes.append, on_death))
        except KeyboardInterrupt:
            interrupted = True
        except BaseException:
            if outcomes:
                with suppress(OSError):
                    folder.report()
            raise
    seconds = time.perf_counter() - started
    if interrupted and not outcomes and before == 0:
        typer.echo("interrupted before a shard was done", err=True)
        return _INTERRUPTED
    failed = folder.report()
    if not interrupted:
        folder.finish(names)
    labelled = sum(one.labelled for one in outcomes)
    rate = sum(one.labelled + one.failed for one in outcomes) / seconds
    typer.echo(
        f"{images} images: {labelled} labelled ({rate:.3g} images/s), {before} done before, "
        f"{failed} failed -> {folder.path}"
    )
    if interrupted:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        return _INTERRUPTED
    if failed:
        typer.echo(f"what failed and why: {folder.path / FAILED}", err=True)
    return _FAILED if failed else 0


class _Lines:
    """A line of progress now and then, where there is no terminal for a bar."""

    def __init__(self, images: int, before: int, console: Console | None) -> None:
        self._images, self._done, self._new = images, before, 0
        self._console = console
        self._started = self._told = time.perf_counter()

    def advance(self, count: int) -> None:
        self._done += count
        self._new += count
        now = time.perf_counter()
        if self._console is None or now - self._told < _TELL or self._new <= 0:
            return
        self._told = now
        rate = self._new / (now - self._started)
        left = timedelta(seconds=round((self._images - self._done) / rate))
        self._console.print(
            f"{self._done} of {self._images} images, {rate:.3g} images/s, {left} left",
            soft_wrap=True,
        )
