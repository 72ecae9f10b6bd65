"""An ONNX graph built into a plan, and a plan given other weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastfss.engines.manifest import EngineError
from fastfss.engines.tensorrt.library import Library
from fastfss.engines.tensorrt.messages import Log, progress_monitor, the_log
from fastfss.engines.tensorrt.options import BuildOptions, Report

if TYPE_CHECKING:
    import tensorrt as trt

Shape = tuple[int, ...]
Ranges = tuple[Shape, Shape, Shape]  # least, usual, largest


@dataclass(frozen=True)
class Built:
    """What a build makes.

    Attributes:
        plan: to be deserialised.
        timings: the timing cache after it; another build of the same layers is faster with it.
    """

    plan: bytes
    timings: bytes


def build(
    library: Library,
    graph: Path,
    options: BuildOptions,
    *,
    capability: str = "",
    exact: bool,
    ranges: Mapping[str, Ranges],
    timings: bytes,
    report: Report,
) -> Built:
    """Build a graph.

    The network is strongly typed: tensors have the dtypes that the graph gives them. TensorRT
    before 11 would choose otherwise, the others have nothing else.

    Args:
        library: by which.
        graph: the ONNX file.
        options: how.
        capability: for which GPUs, where the library builds for others than the one at hand.
        exact: whether float32 products are float32, and not TF32 of 10 bits, TensorRT's default.
        ranges: least, usual and largest shape of inputs with free sides.
        timings: an earlier timing cache of this GPU and version, or nothing.
        report: told of progress.

    Raises:
        EngineError: TensorRT cannot parse or build the graph; with its reasons.
        ValueError: a capability that the library does not build for.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.bindings()

    log = the_log(library)
    builder = trt.Builder(log.logger)
    network, parser = parsed(library, builder, graph)
    config = builder.create_builder_config()
    if capability:
        library.target(config, capability)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.level
    # Others would need streams of their own in a CUDA graph.
    config.max_aux_streams = 0
    if exact:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    config.progress_monitor = progress_monitor(library, report)
    if ranges:
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in ranges.items():
            profile.set_shape(name, least, usual, largest)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{graph}: {library.title} refuses the sizes: {log.taken()}")
    # A cache of another GPU or version is refused; then it begins anew. Nothing is timed ahead.
    for cache in () if library.ahead else (timings, b""):
        if config.set_timing_cache(config.create_timing_cache(cache), False):
            break
    plan = builder.build_serialized_network(network, config)
    del parser  # the network's weights were its own
    if plan is None:
        raise EngineError(f"{graph}: {library.title} cannot build it: {log.taken()}")
    timed = b"" if library.ahead else bytes(config.get_timing_cache().serialize())
    return Built(bytes(plan), timed)


def parsed(
    library: Library, builder: trt.Builder, graph: Path
) -> tuple[trt.INetworkDefinition, trt.OnnxParser]:
    """The strongly typed network of a graph, and the parser, which has to live as long.

    Raises:
        EngineError: the parser does not take it; with the nodes and its reasons.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.bindings()

    log = the_log(library)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        raise EngineError(f"{graph}: {library.title} cannot parse it: {_errors(parser, log)}")
    return network, parser


def output_ranges(library: Library, graph: Path, shapes: Ranges) -> dict[str, Ranges]:
    """The shapes of a graph's results for the least, usual and largest shape of its one input.

    Raises:
        EngineError: the parser does not take the graph.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.bindings()

    builder = trt.Builder(the_log(library).logger)
    network, _parser = parsed(library, builder, graph)
    found: list[dict[str, Shape]] = []
    for shape in shapes:
        network.get_input(0).shape = shape
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        found.append({one.name: tuple(one.shape) for one in outputs})
    least, usual, largest = found
    return {name: (least[name], usual[name], largest[name]) for name in least}


def refit(library: Library, engine: trt.ICudaEngine, graph: Path) -> None:
    """Give an engine that was built with REFIT the weights of another export of its graph.

    Raises:
        EngineError: the graphs differ in more than weights.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.bindings()

    log = the_log(library)
    refitter = trt.Refitter(engine, log.logger)
    parser = trt.OnnxParserRefitter(refitter, log.logger)
    if not parser.refit_from_file(str(graph)):
        raise EngineError(f"{graph}: its weights do not fit the plan: {_errors(parser, log)}")
    if missing := refitter.get_missing_weights():
        wanted = ", ".join(missing[:5])
        raise EngineError(f"{graph}: has not all weights that the plan wants: {wanted}")
    if not refitter.refit_cuda_engine():
        raise EngineError(f"{graph}: {library.title} cannot refit the plan: {log.taken()}")


def _errors(parser: trt.OnnxParser | trt.OnnxParserRefitter, log: Log) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [f"node {e.node()} ({e.node_operator()} {e.node_name()}): {e.desc()}" for e in errors]
    return "; ".join(told) or log.taken()
