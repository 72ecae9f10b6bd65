"""``fastfss video``: masks or clicks on one frame in, masks of all frames out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer
from rich.console import Console

from fastfss.annotation import Annotation
from fastfss.atomic import check_writable, write_text_atomically
from fastfss.cli.making import (
    check_device,
    chosen_click_model,
    chosen_video_method,
    inference_model,
    made_model,
    method_options,
)
from fastfss.cli.marks import read_marks
from fastfss.cli.options import (
    BackboneOption,
    DebugOption,
    DeviceOption,
    EncoderBackendOption,
    LayersOption,
    MethodOptions,
    OverwriteOption,
    ShorterSideOption,
    ThreadsOption,
    WeightsOption,
    layer_names,
    one_of,
)
from fastfss.cli.predict import support_shots
from fastfss.cli.prediction_run import interruptions, progress_bar
from fastfss.cli.prediction_settings import PredictionSettings, Way, differences, file_record
from fastfss.errors import expected
from fastfss.interactive.refinement import RefinementName
from fastfss.reading import read_json
from fastfss.video import VideoSession
from fastfss.video.export import ExportFormat
from fastfss.video.label_files import read_labels
from fastfss.video.opening import open as open_session
from fastfss.video.session import Direction
from fastfss.video.source import FrameSource, open_source

_INTERRUPTED = 130
_SECONDS_BETWEEN_SAVES = 10.0
_FILES: dict[ExportFormat, str] = {
    **{"davis": "masks", "binary": "binary", "cutout": "cutouts", "overlay": "overlay.mp4"},
    **{"coco": "coco.json", "ytvis": "ytvis.json", "cvat": "cvat.xml", "csv": "objects.csv"},
}


def video(
    source: Annotated[
        Path, typer.Argument(metavar="VIDEO", help="A video file, or a folder of images.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for the results.")],
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="The masks of --frame, an object a number (DAVIS's palette)."
        ),
    ] = None,
    click: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y ...", help="Pixels of an object in --frame; -X,Y is not the object."
        ),
    ] = None,
    scribble: Annotated[
        list[str] | None, typer.Option(metavar="X,Y,X,Y,... ...", help="Strokes likewise.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="LEFT,TOP,RIGHT,BOTTOM ...", help="Boxes likewise."),
    ] = None,
    support: Annotated[
        list[Path] | None,
        typer.Option(metavar="IMAGE MASK ...", help="The object in other images."),
    ] = None,
    frame: Annotated[int, typer.Option(min=0, help="Where the masks or clicks are, from 0.")] = 0,
    direction: Annotated[
        str, typer.Option(metavar="|".join(get_args(Direction)), help="From --frame on.")
    ] = "both",
    first: Annotated[int, typer.Option(min=0, help="The first frame to segment.")] = 0,
    last: Annotated[int | None, typer.Option(min=0, help="The last; else the video's.")] = None,
    format: Annotated[
        str, typer.Option(metavar=",".join(_FILES), help="What to write, separated by commas.")
    ] = "davis,overlay",
    method: Annotated[
        str | None,
        typer.Option(
            help="The segmentation method; else label propagation, without --backbone or --weights "
            "with the package's own.",
            show_default=False,
        ),
    ] = None,
    backbone: BackboneOption = None,
    layers: LayersOption = None,
    weights: WeightsOption = None,
    size: ShorterSideOption = 480,
    option: MethodOptions = None,
    refinement: Annotated[
        str, typer.Option(metavar="none|guided|grabcut|edges", help="Of the masks' edges.")
    ] = "none",
    backend: EncoderBackendOption = "auto",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Follow objects through a video from masks, clicks or boxes on one frame.

    OUT/session holds the session: the same command again goes on where the last run stopped, and
    fastfss.video.open(VIDEO, workspace="OUT/session") opens it in Python.

    Example: fastfss video clip.mp4 --click 320,200 --out results
    """
    said = read_marks(click or [], scribble or [], box or [])
    if mask is None and said is None and not support:
        raise typer.BadParameter("expected --mask, --click, --scribble, --box or --support")
    if mask is not None and said is not None:
        raise typer.BadParameter("--mask stands for --click, --scribble and --box; got both")
    towards: Direction = one_of("--direction", direction, get_args(Direction))
    formats = _formats(format)
    settings = PredictionSettings(
        method=method or chosen_video_method(backbone, weights),
        backbone=backbone,
        layers=layer_names(layers),
        weights=weights,
        size=size,
        options=method_options(option or [], None),
        value=None,
        ways=(Way("object", support_shots(support or [], None)),) if support else (),
    )
    record = settings.record()
    record |= {"video": str(source.resolve()), "frame": frame, "refinement": refinement}
    record |= {"mask": None if mask is None else file_record(mask, "--mask")}
    record |= {"marks": None if said is None else said.to_json()}
    check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    opened = open_source(source)
    last = _last(opened, frame, first, last)
    labels = None if mask is None else read_labels(mask, opened.size, "--mask")
    session = _session(opened, settings, refinement, device, backend, out, record, overwrite)
    with session:
        if not session.history:
            _say(session, frame, labels, said, support or [])
        code = _follow(session, frame, towards, first, last, out)
        for one in formats if code == 0 else []:
            session.export(out / _FILES[one], one)
            typer.echo(f"{one}: {out / _FILES[one]}")
    raise typer.Exit(code)


def _session(
    source: FrameSource,
    settings: PredictionSettings,
    refinement: str,
    device: str,
    backend: str,
    out: Path,
    record: dict[str, object],
    overwrite: bool,
) -> VideoSession:
    folder, path = out / "session", out / "session" / "command.json"
    if path.exists() and not overwrite:
        changed = differences(read_json(path, f"--out '{path}'"), record)
        if changed:
            raise expected("--out", "the folder of this same command, or --overwrite", changed[0])
    elif out.exists() and any(out.iterdir()) and not overwrite:
        raise expected("--out", "a new or empty folder, or --overwrite", f"'{out}' with files")
    model = made_model(
        settings.method, settings.backbone, settings.layers, settings.weights, settings.options
    )
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder, "--out")
    if overwrite:
        (folder / "session.json").unlink(missing_ok=True)
    session = open_session(
        source,
        inference_model(model, device, backend, images=source.count),
        size=settings.size,
        refinement=one_of("--refinement", refinement, get_args(RefinementName)),
        click_model=chosen_click_model(settings.method, device, backend),
        workspace=folder,
    )
    write_text_atomically(path, json.dumps(record) + "\n")
    return session


def _say(
    session: VideoSession,
    frame: int,
    labels: torch.Tensor | None,
    said: Annotation | None,
    support: Sequence[Path],
) -> None:
    """Tell the session what the command says."""
    if labels is not None:
        session.add_labels(frame, labels.numpy())
    if said is None and not support:
        return
    number = min(session.objects, default=0) or session.add_object("object")
    for image, mask in zip(support[::2], support[1::2], strict=True):
        session.add_support(image, {number: mask}, name=image.name)
    if said is not None:
        session.annotate(frame, number, said)


def _follow(
    session: VideoSession, frame: int, direction: Direction, first: int, last: int, out: Path
) -> int:
    """Segment what is left to do, saving now and then; the exit code."""
    both: tuple[Direction, ...] = ("forward", "backward")
    ways = both if direction == "both" else (direction,)
    console = Console(stderr=True, highlight=False, emoji=False)
    bar = progress_bar(console)
    saved = started = time.monotonic()
    done = 0
    with bar if console.is_terminal else nullcontext(), interruptions() as interrupted:
        task = bar.add_task("frames", total=last - first + 1)
        for way in ways:
            has = set(session.frames)
            step, end = (1, last) if way == "forward" else (-1, first)
            at = frame
            while at != end and at in has and at + step in has:
                at += step
            bar.update(task, completed=len(has))
            if at == end and at in has:
                continue
            for _ in session.propagate(
                at, direction=way, first=first, last=last, cancel=interrupted
            ):
                done += 1
                bar.update(task, advance=1)
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    session.save(out / "session")
                    saved = time.monotonic()
            session.save(out / "session")
    session.save(out / "session")
    rate = done / max(time.monotonic() - started, 1e-9)
    typer.echo(f"{len(session.frames)} of {session.count} frames, {done} now, {rate:.1f} a second")
    if interrupted.is_set():
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        return _INTERRUPTED
    return 0


def _last(source: FrameSource, frame: int, first: int, last: int | None) -> int:
    """The last frame to segment; ValueError where the three are in no order."""
    count = source.count or 0
    last = count - 1 if last is None else last
    if not first <= frame <= last < count:
        wanted = f"--first <= --frame <= --last < {count}, the number of frames"
        raise expected("--frame", wanted, f"{first}, {frame}, {last}")
    return last


def _formats(text: str) -> list[ExportFormat]:
    known: tuple[ExportFormat, ...] = get_args(ExportFormat)
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if not wanted or set(wanted) - set(known):
        raise typer.BadParameter(f"--format: expected {', '.join(known)}, got {text!r}")
    return [one for one in known if one in wanted]
