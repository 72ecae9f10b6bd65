"""An ONNX graph built into a plan, and a plan given other weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastfss.engines.manifest import EngineError
from fastfss.engines.tensorrt.messages import progress_monitor, the_log
from fastfss.engines.tensorrt.options import BuildOptions, Report

if TYPE_CHECKING:
    import tensorrt as trt

Shape = tuple[int, ...]


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
    graph: Path,
    options: BuildOptions,
    *,
    exact: bool,
    ranges: Mapping[str, tuple[Shape, Shape, Shape]],
    timings: bytes,
    report: Report,
) -> Built:
    """Build a graph.

    The network is strongly typed: tensors have the dtypes that the graph gives them. Versions
    before 11 would choose otherwise, 11 has nothing else.

    Args:
        graph: the ONNX file.
        options: how.
        exact: whether float32 products are float32, and not TF32 of 10 bits, TensorRT's default.
        ranges: least, usual and largest shape of inputs with free sides.
        timings: an earlier timing cache of this GPU and version, or nothing.
        report: told of progress.

    Raises:
        EngineError: TensorRT cannot parse or build the graph; with its reasons.
    """
    import tensorrt as trt

    log = the_log()
    builder = trt.Builder(log.logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        raise EngineError(f"{graph}: TensorRT cannot parse it: {_parser_errors(parser)}")
    config = builder.create_builder_config()
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.level
    # Others would need streams of their own in a CUDA graph.
    config.max_aux_streams = 0
    if exact:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    config.progress_monitor = progress_monitor(report)
    if ranges:
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in ranges.items():
            profile.set_shape(name, least, usual, largest)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{graph}: TensorRT refuses the sizes: {log.taken()}")
    # A cache of another GPU or version is refused; then it begins anew.
    if not config.set_timing_cache(config.create_timing_cache(timings), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{graph}: TensorRT cannot build it: {log.taken()}")
    return Built(bytes(plan), bytes(config.get_timing_cache().serialize()))


def refit(engine: trt.ICudaEngine, graph: Path) -> None:
    """Give an engine that was built with REFIT the weights of another export of its graph.

    Raises:
        EngineError: the graphs differ in more than weights.
    """
    import tensorrt as trt

    log = the_log()
    refitter = trt.Refitter(engine, log.logger)
    parser = trt.OnnxParserRefitter(refitter, log.logger)
    if not parser.refit_from_file(str(graph)):
        raise EngineError(f"{graph}: its weights do not fit the plan: {_parser_errors(parser)}")
    if missing := refitter.get_missing_weights():
        wanted = ", ".join(missing[:5])
        raise EngineError(f"{graph}: has not all weights that the plan wants: {wanted}")
    if not refitter.refit_cuda_engine():
        raise EngineError(f"{graph}: TensorRT cannot refit the plan: {log.taken()}")


def _parser_errors(parser: trt.OnnxParser | trt.OnnxParserRefitter) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [f"node {e.node()} ({e.node_operator()} {e.node_name()}): {e.desc()}" for e in errors]
    return "; ".join(told) or the_log().taken()
