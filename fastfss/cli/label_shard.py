"""One shard of ``fastfss label``: labelled in a place of its own, then published by one rename.

A shard's outputs are made in OUT/.work/NUMBER.TOKEN, and one rename makes that folder
OUT/shards/NUMBER. A kill before it leaves nothing but a folder that the next run removes; and of
two processes that did the same shard, the second one's rename fails, because a folder is there.
So a shard is there whole, once, or not at all.

Beside it lies OUT/.work/NUMBER.tried, the shard's diary: a line when a process begins the shard,
and the number of each image before it is read. It tells whoever takes the shard over how often it
was begun and which image was in hand when a process died. After `REQUEUES` such takeovers that
image is no longer tried: one image that kills whatever reads it costs itself, not the job.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastfss.allocation import keep_freed_memory
from fastfss.cli.label_formats import RECORDS, ShardFiles, count_failed
from fastfss.cli.label_images import LabelImage
from fastfss.cli.prediction_run import is_the_querys_own
from fastfss.cli.prediction_settings import PredictionSettings
from fastfss.result import Result

SHARDS, WORK = "shards", ".work"
# How often a shard whose process died is begun anew before its images are blamed.
REQUEUES = 3

_BEGUN = "begun"
_DEADLY = "the process that labelled it was killed, again and again"


@dataclass(frozen=True)
class Shard:
    """A run of neighbours in a job's list of images.

    Attributes:
        number: from 0.
        first: the first image's place in the job's list, from 0.
        images: the images.
    """

    number: int
    first: int
    images: tuple[LabelImage, ...]

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.number:06}"


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: how many of its images were labelled and how many failed."""

    number: int
    labelled: int
    failed: int


Labelling = Callable[[Shard, Callable[[], None]], Outcome]


@dataclass(frozen=True)
class LabelJob:
    """All that a process needs to label shards; it can be sent to any process or machine.

    Attributes:
        out: the output folder, absolute.
        formats: what is written, of `fastfss.cli.label_formats.FORMATS`.
        settings: the model and its tasks.
        backend: of the engine, or of the model's encoder.
        threads: CPU threads of each process.
    """

    out: Path
    formats: tuple[str, ...]
    settings: PredictionSettings
    backend: str = "auto"
    threads: int = 1

    def start(self, device: str) -> Labelling:
        """Load the model and the tasks, and return what labels a shard."""
        from fastfss.cli.predict import build_model, load_task

        keep_freed_memory()
        torch.set_num_threads(self.threads)
        backend = self.backend
        if backend == "auto" and self.settings.engine is None and device == "cpu":
            backend = "eager"  # processes that all measure at once measure each other
        model = build_model(self.settings, device, backend)
        files = [way.task for way in self.settings.ways if way.task is not None]
        tasks = [load_task(model, file, device) for file in files]

        def label(shard: Shard, on_image: Callable[[], None]) -> Outcome:
            predict = lambda image: model.predict(image, tasks)  # noqa: E731
            return label_shard(shard, self.out, self.formats, predict, on_image)

        return label


def label_shard(
    shard: Shard,
    out: Path,
    formats: tuple[str, ...],
    predict: Callable[[Tensor], Result],
    on_image: Callable[[], None],
) -> Outcome:
    """Label a shard's images and publish the outputs; again from its start if it was cut off.

    Args:
        shard: the shard.
        out: the job's folder, in which `SHARDS` and `WORK` exist.
        formats: what to write.
        predict: the model with its tasks.
        on_image: called after each image.

    Raises:
        OSError: the outputs cannot be written.
    """
    final = out / SHARDS / shard.name
    if final.exists():
        # Whoever published it died before telling.
        failed = count_failed(final)
        return Outcome(shard.number, len(shard.images) - failed, failed)
    diary = _Diary(out / WORK / f"{shard.name}.tried")
    deadly = diary.begin()
    place = out / WORK / f"{shard.name}.{secrets.token_hex(4)}"
    place.mkdir()
    labelled = 0
    with ShardFiles(place, formats) as files:
        for number, image in enumerate(shard.images):
            diary.note(number)
            identity = shard.first + number + 1
            result = None
            error = _DEADLY if number in deadly else None
            if error is None:
                try:
                    result = predict(image.read())
                except Exception as problem:
                    if not is_the_querys_own(problem):
                        raise
                    error = " ".join(str(problem).split()) or type(problem).__name__
            if result is None:
                files.fail(identity, image, error or "")
            else:
                files.add(identity, image, result)
                labelled += 1
            on_image()
    publish(place, final)
    diary.remove()
    return Outcome(shard.number, labelled, len(shard.images) - labelled)


def publish(place: Path, final: Path) -> bool:
    """Give a finished folder its final name; if one of that name is there, that one stays.

    Returns:
        Whether this folder is the one that is there now.
    """
    try:
        place.rename(final)
    except OSError:
        # Never empty, and a rename only replaces empty folders.
        if not (final / RECORDS).exists():
            raise
        shutil.rmtree(place)
        return False
    return True


class _Diary:
    """Who began a shard and how far they came; appended to, so a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def begin(self) -> set[int]:
        """Note that the shard is begun; return the images that are not to be tried any more."""
        deadly = set()
        begun, in_hand = 0, None
        lines = self._path.read_text("ascii").splitlines() if self._path.exists() else []
        for line in [*lines, _BEGUN]:
            if line == _BEGUN:
                if begun > REQUEUES and in_hand is not None:
                    deadly.add(in_hand)
                begun += 1
                in_hand = None
            else:
                in_hand = int(line)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._write(_BEGUN)
        return deadly

    def note(self, number: int) -> None:
        """Note that an image is taken in hand."""
        self._write(str(number))

    def remove(self) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode("ascii"))
