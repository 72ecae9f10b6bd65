"""The engine: plans from the store or built, two runners with one scratch memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fastfss.engines.base import Engine
from fastfss.engines.manifest import Manifest
from fastfss.engines.tensorrt.building import Plans, stem
from fastfss.engines.tensorrt.device import Device
from fastfss.engines.tensorrt.library import TENSORRT, TENSORRT_RTX, Library
from fastfss.engines.tensorrt.messages import the_log
from fastfss.engines.tensorrt.options import BuildOptions, Report
from fastfss.engines.tensorrt.runner import GraphRunner
from fastfss.methods import Features


class TensorRTEngine(Engine):
    """Both graphs in TensorRT, built at the first load and kept.

    Args:
        folder, manifest, device: as in Engine.
        options: how to build.
        report: told of builds, which take from half a minute to several.

    Attributes:
        notes: where each plan came from and whether calls are captured, for people.

    Raises:
        EngineError: TensorRT cannot build or run a graph; with its reasons.
    """

    backend: ClassVar[str] = TENSORRT.backend
    library: ClassVar[Library] = TENSORRT

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        device: torch.device,
        *,
        options: BuildOptions | None = None,
        report: Report | None = None,
    ) -> None:
        super().__init__(folder, manifest, device)
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = self.library.bindings()

        self._options, library = options or BuildOptions(), self.library
        self._gpu = Device(device)
        about = self._gpu.about()
        self._plans = Plans(library, folder, manifest, self._options, report or (lambda _: None))
        # Engines do not keep their runtime alive.
        self._runtime = trt.Runtime(the_log(library).logger)
        specs = (manifest.encode, manifest.match)
        engines = [self._plans.engine(self._runtime, spec, about) for spec in specs]
        needed = max(engine.device_memory_size_v2 for engine, _ in engines)
        scratch = self._gpu.empty((needed,), torch.uint8)
        self._runners = [
            GraphRunner(
                library,
                engine,
                spec,
                self._gpu,
                scratch,
                compiled,
                cuda_graph=self._options.cuda_graphs,
            )
            for (engine, compiled), spec in zip(engines, specs, strict=True)
        ]
        kept = all(compiled.path.is_file() for _, compiled in engines)
        if library.ahead and (not kept or any(one.refused for one in self._runners)):
            self._compile()

    @classmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """What the library lacks."""
        if (reason := Device.why_not(device)) is not None:
            return reason
        if (reason := cls.library.missing()) is not None:
            return reason
        return cls.library.refuses(Device.capability(device))

    @classmethod
    def slow_start(cls, folder: Path, manifest: Manifest, device: torch.device) -> str | None:
        """Why its first load takes minutes, or None where all that it needs is there."""
        plans = Plans(cls.library, folder, manifest, BuildOptions(), lambda _: None)
        if plans.kept(Device(device).about()):
            return None
        work = "compiles for up to a minute" if cls.library.ahead else "builds for a minute or more"
        return f"it {work}; load it by name once"

    @property
    def notes(self) -> str:
        """Where plans came from, and of CUDA graphs."""
        lines = list(self._plans.notes)
        for runner, spec in zip(
            self._runners, (self.manifest.encode, self.manifest.match), strict=True
        ):
            if runner.refused:
                lines.append(f"{stem(spec)}: its kernels were of another GPU or driver: compiled")
            if runner.no_graph_because is not None:
                lines.append(f"{stem(spec)}: no CUDA graph: {runner.no_graph_because}")
        return "; ".join(lines)

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        return self._runners[0]({self.manifest.encode.inputs[0].name: images})

    def _match(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._runners[1](inputs)

    def _compile(self) -> None:
        """Run on an empty image, so that what the library compiles is compiled and kept."""
        manifest = self.manifest
        size = self._options.sizes[1] if manifest.dynamic else manifest.fixed_size()
        dtype = manifest.encode.inputs[0].torch_dtype
        maps = self._encode(torch.zeros(1, 3, *size, dtype=dtype, device=self.device))
        self._match(self.match_inputs(Features(maps, size), self.example_tasks()))


class TensorRTForRTXEngine(TensorRTEngine):
    """Both graphs in TensorRT for RTX: built anywhere in seconds, compiled by each GPU once."""

    backend: ClassVar[str] = TENSORRT_RTX.backend
    library: ClassVar[Library] = TENSORRT_RTX
