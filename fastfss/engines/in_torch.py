"""Engines of PyTorch itself: eager, compiled, and captured in CUDA graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastfss.engines.base import Engine
from fastfss.engines.graphs import graphs_of
from fastfss.engines.manifest import Manifest
from fastfss.methods.graphed import Graphed


class EagerEngine(Engine):
    """The model as it is, batch norms folded, with our operations' own kernels; always float32."""

    backend: ClassVar[str] = "eager"

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(folder, manifest, device)
        self._encode_graph, self._match_graph = graphs_of(self.model, manifest)
        self._run_encode: Callable[..., Any] = self._encode_graph
        self._run_match: Callable[..., Any] = self._match_graph

    @classmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """None where the device is there."""
        if device.type == "cuda" and not torch.cuda.is_available():
            return "torch sees no NVIDIA GPU"
        return None

    @property
    def exact(self) -> bool:
        """It always computes in float32."""
        return True

    @torch.no_grad()
    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        maps = self._run_encode(images)
        return dict(zip(self._encode_graph.names, maps, strict=True))

    @torch.no_grad()
    def _match(self, inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self._run_match(*(inputs[n] for n in self._match_graph.input_names))
        return logits


class CompiledEngine(EagerEngine):
    """The same through torch.compile: the first call compiles, for a minute or more."""

    backend: ClassVar[str] = "torch-compile"

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(folder, manifest, device)
        # A graph for each size: known sizes make faster code.
        self._run_encode = torch.compile(self._encode_graph, dynamic=False)
        self._run_match = torch.compile(self._match_graph, dynamic=False)

    @classmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """What torch.compile lacks."""
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return "torch.compile makes C++ for the CPU, and there is no g++ or clang++"
        return super().why_not(manifest, device)

    @classmethod
    def slow_start(cls, folder: Path, manifest: Manifest, device: torch.device) -> str | None:
        """It compiles."""
        return "it compiles for a minute or more; name it to use it"


class CudaGraphEngine(EagerEngine):
    """The same captured in two CUDA graphs, at the first call: a launch each."""

    backend: ClassVar[str] = "cuda-graph"

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(folder, manifest, device)
        self._run_encode = Graphed(self._encode_graph)
        self._run_match = Graphed(self._match_graph)

    @classmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """What a CUDA graph needs."""
        if device.type != "cuda":
            return f"CUDA graphs run on an NVIDIA GPU (device='cuda'), not on {device}"
        if manifest.dynamic:
            return "a CUDA graph has one size, and this engine's is free"
        return super().why_not(manifest, device)
