"""An engine that serves at once while a faster one is built beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fastfss.engines.base import Engine
from fastfss.engines.manifest import Manifest


class MeanwhileEngine(Engine):
    """One engine until another is made, in a thread; then that one.

    Args:
        now: serves meanwhile.
        make: makes the other, of the same folder and device. Where it fails, the first goes on.
        wanted: the other's name.
    """

    backend: ClassVar[str] = "meanwhile"

    def __init__(self, now: Engine, make: Callable[[], Engine], wanted: str) -> None:
        super().__init__(now.folder, now.manifest, now.device)
        self.load_seconds = now.load_seconds
        self._used = now
        self._said = f"{wanted} is being made; {now.name} serves meanwhile"
        self._wanted = wanted
        # A program that ends does not wait for a build.
        self._thread = threading.Thread(target=self._replace, args=(make,), daemon=True)
        self._thread.start()

    @classmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """None: its engines have been asked."""
        return None

    @property
    def name(self) -> str:
        """Of the engine that serves now."""
        return self._used.name

    @property
    def exact(self) -> bool:
        """Of the engine that serves now."""
        return self._used.exact

    @property
    def notes(self) -> str:
        """What is being made, or why it was not."""
        return "; ".join(part for part in (self._said, self._used.notes) if part)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the other engine is made, or has failed; False where it takes longer."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _replace(self, make: Callable[[], Engine]) -> None:
        before = self._used.name
        try:
            made = make()
        except Exception as error:  # whatever it is, there is an engine that serves
            text = " ".join(str(error).split())
            self._said = f"{self._wanted} could not be made, {before} goes on: {text}"
            return
        self._used = made
        self._said = ""

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        return self._used._encode(images)

    def _match(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._used._match(inputs)
