"""Task: what a support set becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fastfss.errors import CheckpointError, expected
from fastfss.reading import parse_json
from fastfss.weights import read_checkpoint, read_metadata, save_checkpoint

FORMAT = "fastfss-task-1"


@dataclass(frozen=True, eq=False)
class Task:
    """One class, as a method sees it after its support set: a named bundle of tensors.

    A Task is made by `encode_support` or `fit`, used by `segment` or `predict`, and can be saved,
    moved, merged with further shots and taken apart again. Every tensor keeps its shots apart.

    Attributes:
        method: the method's name, for example "ssp".
        tensors: name -> tensor (B, K, ...): B episodes (1 outside training), K shots.
        name: what the user calls the class.
        settings: what must be equal where the task is used (encoder, layers, weights).
    """

    method: str
    tensors: Mapping[str, Tensor]
    name: str = "object"
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        leading = {
            tuple(t.shape[:2]) if t.ndim >= 2 else tuple(t.shape) for t in self.tensors.values()
        }
        if len(leading) != 1 or len(next(iter(leading))) != 2:
            raise expected(
                "tensors",
                "at least one tensor, all (B, K, ...) with the same B and K",
                str({key: tuple(t.shape) for key, t in self.tensors.items()}),
            )

    @property
    def shots(self) -> int:
        """The number of support images K."""
        return next(iter(self.tensors.values())).shape[1]

    @property
    def batch(self) -> int:
        """The number of episodes B; 1 outside training."""
        return next(iter(self.tensors.values())).shape[0]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Task:
        """The same task on another device or in another floating-point dtype."""
        moved = {key: t.to(device=device, dtype=dtype) for key, t in self.tensors.items()}
        return replace(self, tensors=moved)

    def merge(self, *others: Task) -> Task:
        """The task of all shots together, as if fitted at once.

        Args:
            *others: tasks of the same method, settings and batch; their names may differ (this
                task's name stays).

        Raises:
            ValueError: if a task comes from another method, encoder or weights, or another batch,
                or holds other tensors.
        """
        for other in others:
            other.check_settings(self.method, self.settings, argument="others")
            if other.batch != self.batch:
                raise expected("others", f"tasks of batch {self.batch}", f"batch {other.batch}")
            if other.tensors.keys() != self.tensors.keys():
                held, came = (", ".join(sorted(one.tensors)) for one in (self, other))
                raise expected("others", f"tasks that hold {held}", f"one that holds {came}")
        joined = {
            key: torch.cat([tensor, *(o.tensors[key].to(tensor) for o in others)], dim=1)
            for key, tensor in self.tensors.items()
        }
        return replace(self, tensors=joined)

    def select(self, shots: Sequence[int]) -> Task:
        """The task of these shots alone, counted from 0; negative numbers count from the end.

        Raises:
            ValueError: if no shot would be left or a number is out of range.
        """
        count = self.shots
        if not shots or any(not -count <= shot < count for shot in shots):
            raise expected("shots", f"at least one of 0 to {count - 1}", str(list(shots)))
        return replace(self, tensors={k: t[:, list(shots)] for k, t in self.tensors.items()})

    def remove(self, shot: int) -> Task:
        """The task without one shot.

        Raises:
            ValueError: if it is the only shot or there is no such shot.
        """
        count = self.shots
        if count == 1 or not -count <= shot < count:
            raise expected("shot", f"one of 0 to {count - 1}, with another one left", str(shot))
        return self.select([index for index in range(count) if index != shot % count])

    def check_settings(self, method: str, settings: Mapping[str, str], *, argument: str) -> None:
        """Raise ValueError, naming `argument`, unless the task has this method and settings."""
        if self.method != method:
            raise expected(argument, f"a task of method {method!r}", f"one of {self.method!r}")
        for key in sorted(settings.keys() | self.settings.keys()):
            wanted, came = settings.get(key), self.settings.get(key)
            if wanted != came:
                raise expected(argument, f"a task with {key} {wanted!r}", f"one with {came!r}")

    def save(self, path: str | Path) -> None:
        """Write the task as safetensors; an interrupted write leaves the old file as it was.

        Raises:
            OSError: if the file cannot be written.
        """
        metadata = {
            "format": FORMAT,
            "method": self.method,
            "name": self.name,
            "settings": json.dumps(dict(self.settings), sort_keys=True),
        }
        save_checkpoint(path, dict(self.tensors), metadata)

    @staticmethod
    def load(path: str | Path) -> Task:
        """Read a task that `save` wrote.

        Raises:
            CheckpointError: if there is no such file, or it is not a readable safetensors file.
            ValueError: if it is one, but not of a task.
        """
        metadata = read_metadata(path)
        if metadata.get("format") != FORMAT:
            raise expected(
                "path",
                "a task file written by Task.save",
                f"{path} (a safetensors file of something else)",
            )
        settings = parse_json(metadata.get("settings", "{}"), f"settings of task {path}")
        told = {"method", "name"} <= metadata.keys() and isinstance(settings, dict)
        if not told or not all(isinstance(value, str) for value in settings.values()):
            raise expected(
                "path", "a whole task file", f"{path} (without method, name or settings)"
            )
        try:
            return Task(metadata["method"], read_checkpoint(path), metadata["name"], settings)
        except CheckpointError:
            raise
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
