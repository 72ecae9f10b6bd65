"""One graph's engine: tensors by name, in memory of its own, captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastfss.engines.manifest import EngineError, GraphSpec, TensorSpec
from fastfss.engines.tensorrt.device import ALIGNMENT, Device
from fastfss.engines.tensorrt.library import Library
from fastfss.engines.tensorrt.messages import the_log
from fastfss.engines.tensorrt.plans import Compiled

if TYPE_CHECKING:
    import tensorrt as trt

# Of free sizes TensorRT for RTX compiles some kernels in the background: runs after which they are
# kept too.
_LATER = (16, 256)


class GraphRunner:
    """Runs an engine; results are in memory that the next call overwrites.

    Args:
        library: whose engine it is.
        engine: its.
        spec: the graph that it was built of.
        device: where.
        scratch: of at least `engine.device_memory_size_v2` bytes. Runners that take turns on one
            device share it.
        compiled: where the kernels are that a library compiles when it runs.
        cuda_graph: whether calls are captured; a graph of free size is not, unless the library
            captures by itself.

    Attributes:
        no_graph_because: why calls are not replayed from a CUDA graph; None where they are or the
            first call has not been.
        refused: whether the kernels that were kept are of another GPU, driver or version.

    Raises:
        EngineError: the engine is not of the graph, or TensorRT makes no context.
    """

    def __init__(
        self,
        library: Library,
        engine: trt.ICudaEngine,
        spec: GraphSpec,
        device: Device,
        scratch: Tensor,
        compiled: Compiled,
        *,
        cuda_graph: bool,
    ) -> None:
        check_tensors(library, engine, spec)
        self._library, self._log = library, the_log(library)
        self._spec, self._device, self._scratch = spec, device, scratch
        # Contexts use engines that they do not keep alive.
        self._engine = engine
        self._made = library.context(engine, compiled.read(), cuda_graphs=cuda_graph)
        self._compiled, self.refused = compiled, self._made.refused
        context = self._made.context
        if context is None:
            raise EngineError(f"{spec.file}: {library.title} makes no context: {self._log.taken()}")
        if scratch.numel():
            context.set_device_memory(scratch.data_ptr(), scratch.numel())
        self._context = context
        self._free = any(isinstance(side, str) for one in spec.inputs for side in one.shape)
        self._runs = 0  # since the shape was another
        self._held: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None
        self.no_graph_because: str | None = None
        if not cuda_graph:
            self.no_graph_because = "CUDA graphs are switched off"
        elif self._free and not self._made.captures:
            self.no_graph_because = "a CUDA graph has one size, and this engine's is free"

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run, on what the spec's inputs are in `inputs`.

        Raises:
            EngineError: TensorRT refuses a shape or address, or fails.
        """
        with self._device.turn() as stream:
            moved = self._place({one.name: inputs[one.name] for one in self._spec.inputs})
            if self._replay is not None:
                self._replay()
            else:
                self._execute(stream)
                self._runs = 1 if moved else self._runs + 1
                self._keep()
        return {one.name: self._held[one.name] for one in self._spec.outputs}

    def _place(self, inputs: Mapping[str, Tensor]) -> bool:
        """Copy to where the engine reads; True where that, or the results', is a new place."""
        dtypes = {one.name: one.torch_dtype for one in self._spec.inputs}
        moved = [k for k, t in inputs.items() if k not in self._held or self._shape(k) != t.shape]
        for name in moved:
            self._held[name] = self._device.empty(inputs[name].shape, dtypes[name])
        for name, tensor in inputs.items():
            self._held[name].copy_(tensor, non_blocking=True)
        if moved:
            self._bind(moved)
        return bool(moved)

    def _shape(self, name: str) -> torch.Size:
        return self._held[name].shape

    def _bind(self, moved: list[str]) -> None:
        """Tell the context of shapes and addresses, and make room for the results."""
        context = self._context
        for name in moved:
            if not context.set_input_shape(name, tuple(self._shape(name))):
                raise self._failed(f"shape {tuple(self._shape(name))} of {name}")
        if missing := context.infer_shapes():
            raise self._failed(f"no shape of {', '.join(missing)}")
        for one in self._spec.outputs:
            shape = tuple(context.get_tensor_shape(one.name))
            if one.name not in self._held or self._shape(one.name) != shape:
                self._held[one.name] = self._device.empty(shape, one.torch_dtype)
        for name, tensor in self._held.items():
            address = tensor.data_ptr()
            if address % ALIGNMENT:
                raise self._failed(f"address of {name} is no multiple of {ALIGNMENT}")
            if not context.set_tensor_address(name, address):
                raise self._failed(f"address of {name}")

    def _execute(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise self._failed("run")

    def _keep(self) -> None:
        """After the first run of a shape: keep what was compiled for it, or record it."""
        first = self._runs == 1
        if self._made.compiled is not None and (first or (self._free and self._runs in _LATER)):
            self._compiled.write(self._made.compiled())
        if first and self.no_graph_because is None and not self._made.captures:
            self._capture()

    def _capture(self) -> None:
        """Record the run for later calls. What TensorRT defers to the first run is done."""
        self._device.synchronize()
        try:
            self._replay = self._device.capture(self._execute)
        except (RuntimeError, EngineError) as error:
            self.no_graph_because = f"it cannot be captured: {' '.join(str(error).split())[:200]}"

    def _failed(self, what: str) -> EngineError:
        told = f"{self._library.title} refuses: {what}: {self._log.taken()}"
        return EngineError(f"{self._spec.file}: {told}")


def check_tensors(library: Library, engine: trt.ICudaEngine, spec: GraphSpec) -> None:
    """Raise EngineError unless an engine's tensors are those of a graph."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.bindings()

    dtypes = {
        "float32": trt.DataType.FLOAT,
        "float16": trt.DataType.HALF,
        "bfloat16": trt.DataType.BF16,
        "int32": trt.DataType.INT32,
        "int64": trt.DataType.INT64,
    }
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    wanted = {one.name for one in (*spec.inputs, *spec.outputs)}
    if names != wanted:
        other = ", ".join(sorted(names ^ wanted))
        raise EngineError(f"{spec.file}: the plan is of another graph: {other}")
    modes = (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT)
    for mode, side in zip(modes, (spec.inputs, spec.outputs), strict=True):
        for one in side:
            shape = tuple(engine.get_tensor_shape(one.name))
            same = engine.get_tensor_mode(one.name) == mode and _fits(one, shape)
            if not same or engine.get_tensor_dtype(one.name) != dtypes[one.dtype]:
                came = f"{engine.get_tensor_dtype(one.name)} {shape}"
                raise EngineError(f"{spec.file}: expected a plan with {one}, got {came}")


def _fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    """Free sides are -1 in an engine; those of results may be known to it all the same."""
    return len(shape) == len(spec.shape) and all(
        isinstance(own, str) or own == side for own, side in zip(spec.shape, shape, strict=True)
    )
