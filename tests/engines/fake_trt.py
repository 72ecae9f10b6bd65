"""A TensorRT that records what is asked of it and computes by ONNX Runtime on the CPU.

Also TensorRT for RTX: its plans are of compute capabilities, its first run compiles kernels and
keeps them in a cache, and it captures by itself. Both take the calls that fastfss makes, in the
order in which TensorRT takes them, and refuse others: a shape that was not told, an address that is
not aligned, a context whose memory is not given, a run before every tensor has an address. Plans
hold their version and GPU, and load on no other.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
import weakref
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.engines.fake_gpu import ALIGNMENT, State

PLAN = b"fake plan\n"
Shape = tuple[int, ...]


def fake_tensorrt(state: State, api: dict[str, Any]) -> types.ModuleType:
    """The module.

    Args:
        state: what tests set and read.
        api: the list of signatures of a version: its enums have the members of that list.
    """
    for_rtx = "ComputeCapability" in api["enums"]
    module = types.ModuleType("tensorrt_rtx_bindings" if for_rtx else "tensorrt")
    module.__version__ = state.version  # type: ignore[attr-defined]
    for name, members in api["enums"].items():
        setattr(module, name, enum.IntEnum(name, {m: i for i, m in enumerate(members)}))
    trt: Any = module

    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2
            INFO = 3
            VERBOSE = 4

        INTERNAL_ERROR, ERROR, WARNING = Severity(0), Severity(1), Severity(2)

        def log(self, severity: ILogger.Severity, msg: str) -> None:
            raise NotImplementedError

    def refused(logger: ILogger, name: str) -> bool:
        if state.called(name):
            return False
        logger.log(ILogger.WARNING, "a warning that nobody wants")
        logger.log(ILogger.ERROR, f"{name} was told to fail")
        return True

    class IProgressMonitor:
        pass

    class HostMemory:
        def __init__(self, content: bytes) -> None:
            self.content = content
            self.nbytes = len(content)

        def __bytes__(self) -> bytes:
            return self.content

    class ParserError:
        def __init__(self, text: str) -> None:
            self.text = text

        def node(self) -> int:
            return 3

        def node_name(self) -> str:
            return "node_3"

        def node_operator(self) -> str:
            return "Conv"

        def desc(self) -> str:
            return self.text

    class NetworkTensor:
        def __init__(self, network: Network, value: onnx.ValueInfoProto) -> None:
            self.network, self.name, self.value = network, value.name, value

        @property
        def shape(self) -> Shape:
            """That which follows from the inputs'."""
            assert self.network.model is not None
            found = onnx.shape_inference.infer_shapes(self.network.model, data_prop=True)
            return next(sides(one) for one in found.graph.output if one.name == self.name)

        @shape.setter
        def shape(self, shape: Shape) -> None:
            for dim, side in zip(self.value.type.tensor_type.shape.dim, shape, strict=True):
                dim.dim_value = side
            assert self.network.model is not None
            for one in self.network.model.graph.output:
                for dim in one.type.tensor_type.shape.dim:
                    dim.Clear()

    class Network:
        model: onnx.ModelProto | None = None
        parser: weakref.ref[OnnxParser] | None = None

        @property
        def num_outputs(self) -> int:
            assert self.model is not None
            return len(self.model.graph.output)

        def get_input(self, index: int) -> NetworkTensor:
            assert self.model is not None
            return NetworkTensor(self, self.model.graph.input[index])

        def get_output(self, index: int) -> NetworkTensor:
            assert self.model is not None
            return NetworkTensor(self, self.model.graph.output[index])

    class OnnxParser:
        def __init__(self, network: Network, logger: ILogger) -> None:
            self.network, self.logger = network, logger
            self.num_errors = 0

        def parse_from_file(self, path: str) -> bool:
            if refused(self.logger, "parse"):
                self.num_errors = 1
                return False
            self.network.model = onnx.load(path)
            self.network.parser = weakref.ref(self)
            return True

        def get_error(self, index: int) -> ParserError:
            assert index < self.num_errors
            return ParserError("an operator that it does not know")

    class TimingCache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> HostMemory:
            return HostMemory(self.content)

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, tuple[Shape, Shape, Shape]] = {}

        def set_shape(self, name: str, least: Shape, usual: Shape, largest: Shape) -> None:
            assert all(a <= b <= c for a, b, c in zip(least, usual, largest, strict=True))
            self.shapes[name] = (least, usual, largest)

    class Config:
        def __init__(self) -> None:
            self.flags = {trt.BuilderFlag.TF32}  # on by default
            self.builder_optimization_level = 3
            self.max_aux_streams = -1
            self.progress_monitor: Any = None
            self.profiles: list[Profile] = []
            self.limits: dict[Any, int] = {}
            self.cache: TimingCache | None = None
            self.num_compute_capabilities = 0
            self.capabilities: list[str] = []

        def set_compute_capability(self, capability: Any, index: int) -> bool:
            assert for_rtx and index < self.num_compute_capabilities
            self.capabilities.append(capability.name)
            return True

        def set_flag(self, flag: Any) -> None:
            self.flags.add(flag)

        def clear_flag(self, flag: Any) -> None:
            self.flags.discard(flag)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.limits[pool] = size

        def add_optimization_profile(self, profile: Profile) -> int:
            if not state.called("profile"):
                return -1
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, content: bytes) -> TimingCache:
            return TimingCache(bytes(content))

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch and not for_rtx, "RTX times nothing"
            if cache.content and cache.content != f"timings {state.gpu}".encode():
                state.called("timings refused")
                return False
            self.cache = cache
            return True

        def get_timing_cache(self) -> TimingCache:
            return TimingCache(f"timings {state.gpu}".encode())

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Network:
            assert flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
            assert network.model is not None, "parsed first"
            assert network.parser is not None and network.parser(), "the weights are the parser's"
            assert config.max_aux_streams == 0
            assert for_rtx or config.cache is not None, "timings are set before the build"
            free = [one for one in network.model.graph.input if -1 in sides(one)]
            known = config.profiles[0].shapes if config.profiles else {}
            assert {one.name for one in free} == known.keys(), "free inputs need a profile"
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 2)
            monitor.phase_start("Timing", "Building", 5)
            assert monitor.step_complete("Timing", 0)
            assert monitor.step_complete("Building", 0)
            monitor.phase_finish("Timing")
            monitor.phase_finish("Building")
            if refused(self.logger, "build"):
                return None
            about = {
                "version": state.version,
                "gpu": "" if for_rtx else state.gpu,
                "capabilities": config.capabilities,
                "flags": sorted(flag.name for flag in config.flags),
                "level": config.builder_optimization_level,
                "limits": {pool.name: size for pool, size in config.limits.items()},
                "profile": known,
            }
            model = network.model.SerializeToString()
            return HostMemory(PLAN + json.dumps(about).encode() + b"\n" + model)

    class Engine:
        def __init__(self, about: dict[str, Any], model: onnx.ModelProto) -> None:
            self.about, self.model = about, model
            self.device_memory_size_v2 = state.scratch
            graph = model.graph
            self.inputs = {one.name: one for one in graph.input}
            self.values = {one.name: one for one in (*graph.input, *graph.output)}
            self.num_io_tensors = len(self.values)
            self.load()

        def load(self) -> None:
            content = self.model.SerializeToString()
            self.session = onnxruntime.InferenceSession(content)

        def get_tensor_name(self, index: int) -> str:
            return list(self.values)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name in self.inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            kinds = {onnx.TensorProto.FLOAT: trt.DataType.FLOAT}
            return kinds[self.values[name].type.tensor_type.elem_type]

        def get_tensor_shape(self, name: str) -> Shape:
            return sides(self.values[name])

        def create_runtime_config(self) -> RuntimeConfig:
            return RuntimeConfig()

        def create_execution_context(
            self, strategy: Any = None, *, runtime_config: RuntimeConfig | None = None
        ) -> Context | None:
            if not state.called("context"):
                return None
            assert (runtime_config is not None) == for_rtx
            if runtime_config is not None:
                strategy = runtime_config.strategy
            managed = strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return Context(self, runtime_config, needs_memory=managed)

    class RuntimeCache:
        def __init__(self) -> None:
            self.kernels: dict[str, str] = {}

        def deserialize(self, content: bytes) -> bool:
            about, kernels = json.loads(content)
            if about != [state.version, state.gpu]:
                return not state.called("kernels refused")
            self.kernels = kernels
            return state.called("kernels taken")

        def serialize(self) -> HostMemory:
            return HostMemory(json.dumps([[state.version, state.gpu], self.kernels]).encode())

    class RuntimeConfig:
        def __init__(self) -> None:
            self.strategy: Any = None
            self.cuda_graph_strategy: Any = None
            self.cache: RuntimeCache | None = None

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            self.strategy = strategy

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            self.cache = cache
            return True

    class Context:
        def __init__(
            self, engine: Engine, config: RuntimeConfig | None, *, needs_memory: bool
        ) -> None:
            self.engine, self.config = engine, config
            self.needs_memory = needs_memory and engine.device_memory_size_v2 > 0
            self.shapes: dict[str, Shape] = {}
            self.addresses: dict[str, int] = {}
            self.ran: set[str] = set()

        def set_device_memory(self, address: int, size: int) -> None:
            assert size >= self.engine.device_memory_size_v2
            self.needs_memory = False

        def set_input_shape(self, name: str, shape: Shape) -> bool:
            own = self.engine.get_tensor_shape(name)
            least, _, largest = self.engine.about["profile"].get(name, (shape, shape, shape))
            inside = all(a <= s <= b for a, s, b in zip(least, shape, largest, strict=True))
            fits = all(o in (-1, s) for o, s in zip(own, shape, strict=True))
            if not (inside and fits):
                return False
            self.shapes[name] = shape
            return state.called("set_input_shape")

        def infer_shapes(self) -> list[str]:
            return [name for name in self.engine.inputs if name not in self.shapes]

        def get_tensor_shape(self, name: str) -> Shape:
            if name in self.engine.inputs:
                return self.shapes[name]
            own = self.engine.get_tensor_shape(name)
            if -1 not in own:
                return own
            zeros = {k: np.zeros(shape, np.float32) for k, shape in self.shapes.items()}
            return tuple(self.engine.session.run([name], zeros)[0].shape)

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert name in self.engine.values
            assert address % ALIGNMENT == 0
            self.addresses[name] = address
            return state.called("set_tensor_address")

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 7, "the device's own stream"
            assert not self.needs_memory, "a USER_MANAGED context needs memory"
            assert self.addresses.keys() == self.engine.values.keys()
            if not state.called("execute"):
                return False
            if self.config is not None:
                self.compile(self.config)
            taken = {
                name: read(self.addresses[name], self.shapes[name]) for name in self.engine.inputs
            }
            names = [name for name in self.engine.values if name not in taken]
            for name, value in zip(names, self.engine.session.run(names, taken), strict=True):
                write(self.addresses[name], value)
            return True

        def compile(self, config: RuntimeConfig) -> None:
            """Of each shape the kernels, once; then TensorRT for RTX captures by itself."""
            assert config.cache is not None and not state.capturing
            whole = config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if whole:
                state.called("own graph")
            key = str(sorted(self.shapes.items()))
            free = any(-1 in sides(one) for one in self.engine.inputs.values())
            # Those that are made for a size alone come in the background.
            wanted = [key, *([f"{key} specialised"] if free and key in self.ran else [])]
            self.ran.add(key)
            for one in wanted:
                if one not in config.cache.kernels:
                    state.compiled += 1
                    config.cache.kernels[one] = "kernel"

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if refused(self.logger, "deserialize"):
                return None
            assert plan.startswith(PLAN), "what was built is what is loaded"
            head, _, model = plan.removeprefix(PLAN).partition(b"\n")
            about = json.loads(head)
            own = "SM" + state.capability.replace(".", "")
            of_others = about["capabilities"] and own not in about["capabilities"]
            elsewhere = about["version"] != state.version or about["gpu"] not in ("", state.gpu)
            if of_others or elsewhere:
                self.logger.log(ILogger.ERROR, "the plan is of another version or GPU")
                return None
            return Engine(about, onnx.load_from_string(model))

    class Refitter:
        def __init__(self, engine: Engine, logger: ILogger) -> None:
            assert "REFIT" in engine.about["flags"], "only engines that were built for it"
            self.engine, self.logger = engine, logger
            self.left = {one.name for one in engine.model.graph.initializer if is_weight(one)}

        def get_missing_weights(self) -> list[str]:
            return sorted(self.left)

        def refit_cuda_engine(self) -> bool:
            if refused(self.logger, "refit"):
                return False
            self.engine.load()
            return True

    class OnnxParserRefitter:
        def __init__(self, refitter: Refitter, logger: ILogger) -> None:
            self.refitter = refitter
            self.num_errors = 0

        def refit_from_file(self, path: str) -> bool:
            held = {one.name: one for one in self.refitter.engine.model.graph.initializer}
            for one in onnx.load(path).graph.initializer:
                if is_weight(one):
                    if one.name not in held or held[one.name].dims != one.dims:
                        self.num_errors = 1
                        return False
                    held[one.name].CopyFrom(one)
                    self.refitter.left.discard(one.name)
            return True

        def get_error(self, index: int) -> ParserError:
            return ParserError("no such weights")

    for kind in (ILogger, IProgressMonitor, Builder, OnnxParser, Runtime, Refitter):
        setattr(module, kind.__name__, kind)
    trt.OnnxParserRefitter = OnnxParserRefitter
    trt.ICudaEngine, trt.IExecutionContext = Engine, Context
    return module


def is_weight(one: onnx.TensorProto) -> bool:
    return one.data_type == onnx.TensorProto.FLOAT and bool(one.dims)


def sides(value: onnx.ValueInfoProto) -> Shape:
    """A shape, with -1 where it is free."""
    return tuple(one.dim_value or -1 for one in value.type.tensor_type.shape.dim)


def read(address: int, shape: Shape) -> np.ndarray:
    """float32 of the CPU's memory."""
    count = int(np.prod(shape))
    held = (ctypes.c_float * count).from_address(address)
    return np.frombuffer(held, np.float32).reshape(shape).copy()


def write(address: int, value: np.ndarray) -> None:
    content = np.ascontiguousarray(value, np.float32)
    ctypes.memmove(address, content.ctypes.data, content.nbytes)
