"""The engine: plans from the store or built, two runners with one scratch memory."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fastfss.engines.base import Engine
from fastfss.engines.manifest import EngineError, GraphSpec, Manifest
from fastfss.engines.tensorrt.builder import Shape, build, refit
from fastfss.engines.tensorrt.device import Device
from fastfss.engines.tensorrt.messages import the_log
from fastfss.engines.tensorrt.options import BuildOptions, Report
from fastfss.engines.tensorrt.plans import PlanStore, structure_digest
from fastfss.engines.tensorrt.runner import GraphRunner

if TYPE_CHECKING:
    import tensorrt as trt

PLANS = "tensorrt"  # the folder of plans beside the graphs


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

    backend: ClassVar[str] = "tensorrt"

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
        import tensorrt as trt

        self._options = options or BuildOptions()
        self._report: Report = report or (lambda _: None)
        self._gpu = Device(device)
        self._store = store_of(folder, self._options)
        self._notes: list[str] = []
        runtime = trt.Runtime(the_log().logger)
        encode = self._engine(runtime, manifest.encode, self._image_ranges())
        # The sizes of maps follow from those of images.
        match = self._engine(runtime, manifest.match, self._map_ranges(encode))
        needed = max(encode.device_memory_size_v2, match.device_memory_size_v2)
        scratch = self._gpu.empty((needed,), torch.uint8)
        # Engines do not keep their runtime alive.
        self._runtime = runtime
        self._runners = [
            GraphRunner(engine, spec, self._gpu, scratch, cuda_graph=self._options.cuda_graphs)
            for engine, spec in ((encode, manifest.encode), (match, manifest.match))
        ]

    @classmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """What TensorRT lacks."""
        if (reason := Device.why_not(device)) is not None:
            return reason
        if importlib.util.find_spec("tensorrt") is None:
            return 'tensorrt is not installed: pip install "fastfss[tensorrt]"'
        return None

    @classmethod
    def slow_start(cls, folder: Path, manifest: Manifest, device: torch.device) -> str | None:
        """Why its first load takes minutes, or None where both plans are there."""
        options, gpu = BuildOptions(), Device(device)
        store = store_of(folder, options)
        for spec in (manifest.encode, manifest.match):
            key = plan_key(folder, manifest, spec, options, gpu)
            if not store.path(stem(spec), key).is_file():
                return "it builds for a minute or more; load it by name once"
        return None

    @property
    def notes(self) -> str:
        """Where plans came from, and of CUDA graphs."""
        lines = list(self._notes)
        for runner, spec in zip(
            self._runners, (self.manifest.encode, self.manifest.match), strict=True
        ):
            if runner.no_graph_because is not None:
                lines.append(f"{stem(spec)}: no CUDA graph: {runner.no_graph_because}")
        return "; ".join(lines)

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        return self._runners[0]({self.manifest.encode.inputs[0].name: images})

    def _match(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._runners[1](inputs)[self.manifest.match.outputs[0].name]

    # ---- Plans

    def _engine(
        self,
        runtime: trt.Runtime,
        spec: GraphSpec,
        ranges: Mapping[str, tuple[Shape, Shape, Shape]],
    ) -> trt.ICudaEngine:
        """A graph's engine, of a plan that is kept or of one that is built now."""
        name, store = stem(spec), self._store
        key = plan_key(self.folder, self.manifest, spec, self._options, self._gpu)
        path = store.path(name, key)
        with store.locked(path):
            if (found := store.read(path)) is not None:
                engine = runtime.deserialize_cuda_engine(found[0])
                if engine is not None:
                    self._notes.append(f"{name}: plan from {path.name}")
                    if found[1] != spec.sha256:
                        refit(engine, self.folder / spec.file)
                        self._notes.append(f"{name}: refitted to the weights of this export")
                    return engine
                self._notes.append(f"{name}: {path.name} does not load ({the_log().taken()})")
                store.remove(path)
            started = time.perf_counter()
            self._report(f"TensorRT builds {spec.file}, which takes from half a minute to several")
            of_gpu = machine_key(self._gpu)
            built = build(
                self.folder / spec.file,
                self._options,
                exact=self.manifest.precision == "fp32" or name == "match",
                ranges=ranges,
                timings=store.read_timings(of_gpu),
                report=self._report,
            )
            engine = runtime.deserialize_cuda_engine(built.plan)
            if engine is None:
                raise EngineError(f"{spec.file}: its own plan does not load: {the_log().taken()}")
            store.write_timings(of_gpu, built.timings)
            kept = store.write(path, key, spec.sha256, built.plan)
            seconds = time.perf_counter() - started
            where = f"kept as {path.name}" if kept else f"not kept: {store.folder} is read-only"
            self._notes.append(f"{name}: built in {seconds:.1f} s, {where}")
        return engine

    def _image_ranges(self) -> dict[str, tuple[Shape, Shape, Shape]]:
        if not self.manifest.dynamic:
            return {}
        least, usual, largest = ((1, 3, *size) for size in self._options.sizes)
        return {self.manifest.encode.inputs[0].name: (least, usual, largest)}

    def _map_ranges(self, encode: trt.ICudaEngine) -> dict[str, tuple[Shape, Shape, Shape]]:
        """The shapes of the match graph's maps for the least, usual and largest image."""
        if not self.manifest.dynamic:
            return {}
        context = encode.create_execution_context()
        images = self.manifest.encode.inputs[0].name
        shapes: dict[str, list[Shape]] = {}
        for size in self._options.sizes:
            if not context.set_input_shape(images, (1, 3, *size)) or context.infer_shapes():
                raise EngineError(f"encode: refuses images of {size}: {the_log().taken()}")
            for one in self.manifest.maps:
                shapes.setdefault(one.name, []).append(tuple(context.get_tensor_shape(one.name)))
        read = {one.name for one in self.manifest.match.inputs}
        return {name: (a, b, c) for name, (a, b, c) in shapes.items() if name in read}


def stem(spec: GraphSpec) -> str:
    """ "encode" or "match"."""
    return Path(spec.file).stem


def store_of(folder: Path, options: BuildOptions) -> PlanStore:
    """Where an engine folder's plans are."""
    return PlanStore(options.plans or folder / PLANS)


def machine_key(gpu: Device) -> dict[str, str]:
    """What every plan and timing depends on: TensorRT's version, the GPU and its driver."""
    import tensorrt as trt

    return {"tensorrt": trt.__version__, **gpu.about()}


def plan_key(
    folder: Path, manifest: Manifest, spec: GraphSpec, options: BuildOptions, gpu: Device
) -> dict[str, str]:
    """Everything that a plan depends on."""
    refittable = options.refittable
    graph = f"structure {structure_digest(folder / spec.file)}" if refittable else spec.sha256
    return {
        **machine_key(gpu),
        "graph": graph,
        "precision": manifest.precision,
        "level": str(options.level),
        "workspace": str(options.workspace_mib),
        "sizes": str(options.sizes) if manifest.dynamic else "",
    }
