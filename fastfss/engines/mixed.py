"""Two engines as one: the encode graph by one backend, the match graph by another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fastfss.engines.base import Engine
from fastfss.engines.manifest import Manifest


class MixedEngine(Engine):
    """An engine for each graph, such as OpenVINO's convolutions and our own operations' match.

    Args:
        encode, match: engines of the same folder and device.
    """

    backend: ClassVar[str] = "mixed"

    def __init__(self, encode: Engine, match: Engine) -> None:
        super().__init__(encode.folder, encode.manifest, encode.device)
        self._encoder, self._matcher = encode, match
        self.load_seconds = encode.load_seconds + match.load_seconds

    @property
    def name(self) -> str:
        """Both names: "openvino+eager"."""
        return f"{self._encoder.name}+{self._matcher.name}"

    @property
    def exact(self) -> bool:
        """Whether both compute in float32."""
        return self._encoder.exact and self._matcher.exact

    @classmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """None: its engines have been asked."""
        return None

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        return self._encoder._encode(images)

    def _match(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._matcher._match(inputs)
