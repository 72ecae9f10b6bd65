"""What a run of ``fastfss predict`` is made with, and whether two runs may share a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastfss import __version__
from fastfss.annotation import Annotation, Unsaid
from fastfss.cli.marks import Shot
from fastfss.engines.manifest import Manifest
from fastfss.errors import expected
from fastfss.methods.named_models import NAMED_MODELS
from fastfss.text import Label

# The word that stands for a download instead of a file.
IMAGENET = "imagenet"


@dataclass(frozen=True)
class Way:
    """One class to look for: annotated images with a name, or a task saved earlier.

    A shot is an image with its mask, its label, or an annotation or the file of one.
    """

    name: str | None = None
    shots: tuple[Shot, ...] = ()
    task: Path | None = None


@dataclass(frozen=True)
class TextSettings:
    """How labels are found: CLIP's file, and the options of `fastfss.text.TextLabels`."""

    clip: Path
    others: str = "coco"
    threshold: float = 0.5

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON; as in PredictionSettings."""
        return {
            "clip": file_record(self.clip, "--clip"),
            "others": self.others,
            "threshold": self.threshold,
        }


@dataclass(frozen=True)
class PredictionSettings:
    """Everything that decides what the predictions are; None leaves a choice to the method.

    `options` are the method's own, by the names of its constructor's arguments. `unsaid` says what
    pixels are of which annotations say nothing. `engine` is a folder of `fastfss export`, which
    decides about the method and all that belongs to it.
    """

    method: str
    backbone: str | None
    layers: tuple[str, ...] | None
    weights: str | None
    size: int | None
    options: Mapping[str, bool | int | float | str]
    value: int | None
    ways: tuple[Way, ...]
    unsaid: Unsaid | None = None
    engine: Path | None = None
    text: TextSettings | None = None

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON, with a digest of every file.

        Raises:
            FileNotFoundError: one of the files is missing.
            ValueError: one of the files is a folder.
        """
        return {
            "fastfss": __version__,
            "method": self.method,
            "backbone": self.backbone,
            "layers": None if self.layers is None else list(self.layers),
            "weights": self._weights_record(),
            "size": self.size,
            "options": dict(self.options),
            "value": self.value,
            "unsaid": self.unsaid,
            "engine": self._engine_record(),
            "text": None if self.text is None else self.text.record(),
            "ways": [_way_record(way) for way in self.ways],
        }

    def _engine_record(self) -> dict[str, str] | None:
        if self.engine is None:
            return None
        manifest = Manifest.read(self.engine, digests=False)
        return {"file": str(self.engine.absolute()), "sha256": manifest.digest}

    def _weights_record(self) -> dict[str, str] | None:
        if self.weights is None:
            named = NAMED_MODELS.get(self.method)
            if named is None or named.packaged is None:
                return None
            return file_record(Path(named.weights), "--method")
        if self.weights == IMAGENET:
            return {"file": IMAGENET, "sha256": ""}
        return file_record(Path(self.weights), "--weights")


def differences(before: Any, now: Any, name: str = "settings") -> list[str]:
    """List the settings that differ between two records; where files lie does not matter.

    Examples:
        >>> differences({"size": 320, "value": None}, {"size": 480, "value": None})
        ['size was 320, now 480']
    """
    if isinstance(before, dict) and isinstance(now, dict):
        if "sha256" in before and "sha256" in now:
            return [] if before["sha256"] == now["sha256"] else [f"{name} is another file"]
        pairs = {key: (before.get(key), now.get(key)) for key in [*before, *now]}
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        numbered = enumerate(zip(before, now, strict=True), start=1)
        pairs = {f"{name}[{number}]": pair for number, pair in numbered}
    elif before == now:
        return []
    else:
        return [f"{name} was {_shown(before)}, now {_shown(now)}"]
    return [text for key, (old, new) in pairs.items() for text in differences(old, new, key)]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("file", "another kind"))
    if isinstance(value, list):
        files = any(isinstance(entry, dict) for entry in value)
        return f"{len(value)} of them" if files else ",".join(map(str, value))
    return "not given" if value is None else str(value)


def _way_record(way: Way) -> dict[str, Any]:
    if way.task is not None:
        return {"task": file_record(way.task, "--task")}
    shots = [
        {"image": file_record(image, "support image"), "mask": _mask_record(said)}
        for image, said in way.shots
    ]
    return {"name": way.name, "shots": shots}


def _mask_record(said: Path | Annotation | Label) -> str | dict[str, str]:
    if isinstance(said, Label):
        return f"label {said.text}"
    return said.to_json() if isinstance(said, Annotation) else file_record(said, "support mask")


def file_record(path: Path, argument: str) -> dict[str, str]:
    """A file with its digest, for a record; ValueError or FileNotFoundError where there is none."""
    if path.is_dir():
        raise expected(f"{argument} '{path}'", "a file", "a folder")
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError:
        raise FileNotFoundError(f"{argument} '{path}': no such file") from None
    return {"file": str(path.absolute()), "sha256": digest.hexdigest()}
