"""``fastfss cam``: activation maps of labels, in IMR-HSNet's published layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from fastfss.atomic import atomic_path, write_text_atomically
from fastfss.cli.options import DebugOption, DeviceOption, ThreadsOption
from fastfss.cli.prediction_run import progress_bar
from fastfss.cli.prediction_settings import differences, file_record
from fastfss.cli.queries import find_queries
from fastfss.data import in_order, open_set, read_image
from fastfss.errors import expected
from fastfss.reading import read_json
from fastfss.training.activations import published_name, read_map, write_map

if TYPE_CHECKING:
    from fastfss.text import ClipTower

# What the maps of a folder were made with. Its name begins with a dot: published folders hold maps.
RECORD = ".cam.json"


@dataclass(frozen=True)
class Work:
    """An image and the maps that it gets.

    Attributes:
        load: reads it, uint8 (3, H, W).
        maps: file, and place of the class among all names.
    """

    load: Callable[[], Tensor]
    maps: tuple[tuple[Path, int], ...]


def cam(
    clip: Annotated[Path, typer.Option(metavar="FILE", help="CLIP's weights, RN50.pt.")],
    out: Annotated[Path, typer.Option(help="The folder for the maps.")],
    data: Annotated[Path | None, typer.Option(help="The folder of a data set.")] = None,
    kind: Annotated[
        str, typer.Option(metavar="pascal|coco|fss1000|folder", help="What set --data holds.")
    ] = "folder",
    part: Annotated[str, typer.Option(help="Of the set.")] = "val",
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|FOLDER|PATTERN", help="Instead of a set; repeatable."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="What to look for in --images; repeatable, numbered from 0."),
    ] = None,
    others: Annotated[
        str, typer.Option(metavar="coco|pascal|FILE", help="Names that --label competes with.")
    ] = "coco",
    template: Annotated[str, typer.Option(help="The sentence around a name.")] = "a photo of a {}",
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 16,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make maps anew that are there.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Write where CLIP sees a label in an image: the maps that IMR-HSNet trains on.

    One file IMAGE--CLASS.pt for each class of each image, the class counted from 0. The same
    command again goes on where the last run stopped.

    Example: fastfss cam --clip RN50.pt --data VOC2012 --kind pascal --part train --out cams/train
    """
    from fastfss.text import label_names, load_tower
    from fastfss.text.cam import class_features

    if (data is None) == (images is None):
        raise typer.BadParameter("expected --data for a set, or --images and --label")
    if bool(images) != bool(label):
        raise typer.BadParameter("--images and --label belong together; got only one of them")
    if threads is not None:
        torch.set_num_threads(threads)
    if data is not None:
        names, work = _of_set(kind, data, part, out)
    else:
        names, work = _of_files(images or [], label or [], label_names(others), out)
    out.mkdir(parents=True, exist_ok=True)
    _check_record(
        out, {"clip": file_record(clip, "--clip"), "template": template, "names": names}, overwrite
    )
    todo = [one for one in work if overwrite or not _is_done(one)]
    done = 0
    if todo:
        tower = load_tower(clip, device)
        classes = class_features(tower, names, template)
        console = Console(stderr=True)
        progress = progress_bar(console)
        with progress if console.is_terminal else nullcontext():
            bar = progress.add_task("maps", total=len(work), completed=len(work) - len(todo))
            for start in range(0, len(todo), batch):
                together = todo[start : start + batch]
                done += _make(tower, classes, together)
                progress.advance(bar, len(together))
    typer.echo(
        f"{len(work)} images: {done} maps made, {len(work) - len(todo)} images done before -> {out}"
    )


def _make(tower: ClipTower, classes: Tensor, work: Sequence[Work]) -> int:
    """Make and write the maps of some images; returns how many."""
    from fastfss.text.cam import class_maps
    from fastfss.text.clip import centre_square

    loaded = in_order(lambda one: centre_square(one.load(), tower.size), work)
    pairs = [(place, number) for place, one in enumerate(work) for _, number in one.maps]
    maps = class_maps(tower, torch.stack(list(loaded)), classes, pairs).cpu()
    files = [file for one in work for file, _ in one.maps]
    for file, activation in zip(files, maps, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file, flush=False) as temporary:
            write_map(temporary, activation)
    return len(files)


def _is_done(work: Work) -> bool:
    """Whether all maps of an image are there; ValueError for a file that is none."""
    if not all(file.exists() for file, _ in work.maps):
        return False
    for file, _ in work.maps:
        read_map(file)
    return True


def _of_set(kind: str, root: Path, part: str, out: Path) -> tuple[list[str], list[Work]]:
    images = open_set(kind, root, part)
    numbers = sorted(images.classes)
    places = {number: place for place, number in enumerate(numbers)}

    def load(number: int) -> Callable[[], Tensor]:
        return lambda: images.image(number)

    work = [
        Work(
            load(number),
            tuple(
                (out / published_name(images.name, item, cls), places[cls])
                for cls in sorted(item.pixels)
            ),
        )
        for number, item in enumerate(images.items)
        if item.pixels
    ]
    if len(numbers) < 2:
        raise expected("--data", "a set of several classes, which compete", f"{len(numbers)}")
    return [images.classes[number] for number in numbers], work


def _of_files(
    sources: Sequence[str], labels: Sequence[str], others: Sequence[str], out: Path
) -> tuple[list[str], list[Work]]:
    if len(set(labels)) != len(labels):
        raise typer.BadParameter(f"--label: one is given twice in {', '.join(labels)}")
    names = list(dict.fromkeys([*labels, *others]))
    files = find_queries(sources, "--images")
    stems = [file.stem for file in files]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise expected("--images", "files of different names", f"several of {twice[0]!r}")

    def load(file: Path) -> Callable[[], Tensor]:
        return lambda: read_image(file)

    return names, [
        Work(
            load(file),
            tuple((out / f"{file.stem}--{place}.pt", place) for place in range(len(labels))),
        )
        for file in files
    ]


def _check_record(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Refuse a folder whose maps were made with other settings."""
    path = out / RECORD
    if path.exists() and not overwrite:
        before = read_json(path, str(path))
        found = differences(before, settings)
        if found:
            raise expected(
                f"--out '{out}'",
                "a folder of maps made alike; take another one, or --overwrite",
                "; ".join(found),
            )
    write_text_atomically(path, json.dumps(settings, indent=1) + "\n")
