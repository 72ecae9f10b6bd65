"""A method exported as two ONNX graphs with a manifest, checked against eager PyTorch."""

from __future__ import annotations

import io
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._dynamo.exc import UserError
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import fastfss
from fastfss.atomic import TEMPORARY_SUFFIX
from fastfss.data import ImageLike
from fastfss.encoders._to_onnx import to_onnx as onnx_operators
from fastfss.engines.accuracy import CheckClass, measured_cost
from fastfss.engines.aot import write_packages
from fastfss.engines.check import self_check
from fastfss.engines.examples import (
    LOW_DTYPES,
    Example,
    ExportSettings,
    example_of,
    prepared,
    sized,
)
from fastfss.engines.folding import folded
from fastfss.engines.graphs import EncodeGraph, MatchGraph, graphs_of, outputs_of
from fastfss.engines.manifest import (
    ENCODE,
    MANIFEST,
    MATCH,
    WEIGHTS,
    Check,
    GraphSpec,
    Manifest,
    Margins,
    Output,
    Preprocessing,
    Side,
    TensorSpec,
    file_digest,
)
from fastfss.errors import expected, import_extra
from fastfss.methods import FewShotSegmenter, Prediction
from fastfss.methods.guided import GuidedSegmenter
from fastfss.methods.guided_parts import Grid
from fastfss.methods.ways import prediction_of
from fastfss.ops._registry import references_only

if TYPE_CHECKING:
    import onnx

_OPSET = 20

Report = Callable[[str], None]


def export_engine(
    model: FewShotSegmenter,
    out: str | Path,
    settings: ExportSettings,
    *,
    calibration: Sequence[ImageLike] = (),
    check_set: Sequence[CheckClass] = (),
    aot_inductor: bool = False,
    overwrite: bool = False,
    report: Report = print,
) -> Manifest:
    """Write an engine folder: encode.onnx, match.onnx, the weights and manifest.json.

    The folder is whole or not there.

    Args:
        model: on the CPU; it is not changed.
        out: the folder.
        settings: what to export.
        calibration: images like those to come; int8 takes its ranges from them.
        check_set: annotated images on which a low precision's cost is measured.
        aot_inductor: also write encode.pt2 and match.pt2, float32, for C++ programs.
        overwrite: replace an engine folder that is there.
        report: told what the self-check finds.

    Returns:
        The folder's manifest.

    Raises:
        FileExistsError: `out` is there.
        EngineError: a graph needs an operator that engines lack, or does not compute what eager
            PyTorch does; nothing is written then.
        ValueError: a size that the method does not take, or int8 without calibration images.
        NotImplementedError: the method has no graph of free size.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(package, extra="onnx", purpose="fastfss export")
    out = Path(out)
    if settings.precision == "int8" and not calibration:
        raise expected("calibration", "images like those to come, for int8", "none")
    with _folder(out, overwrite) as folder:
        manifest = _write(model, folder, settings, calibration)
        manifest = _checked(model, folder, manifest, settings, check_set, report)
        if aot_inductor:
            report("compiling encode.pt2 and match.pt2")
            _write_packages(model, folder, manifest, settings)
        manifest.write(folder)
    return manifest


def _write(
    model: FewShotSegmenter,
    folder: Path,
    settings: ExportSettings,
    calibration: Sequence[ImageLike],
) -> Manifest:
    """The graphs, the weights, and their manifest, not yet checked."""
    model = sized(model, settings)
    example = example_of(model, settings)
    names = list(example.features.maps)
    tensors = list(example.tasks[0].tensors)
    fast = model.for_inference(channels_last=False)
    low = fast
    if settings.precision in LOW_DTYPES:
        low = model.for_inference(dtype=LOW_DTYPES[settings.precision], channels_last=False)
    on_grid = fast.logits_grid(example.features, example.tasks) is not None
    if settings.dynamic and not on_grid:
        raise NotImplementedError(
            f"{model.method}: no graph of free size, because its logits are made at the image's"
        )
    encode = EncodeGraph(low, names).eval()
    match = MatchGraph(
        fast, names, tensors, settings.ways, example.features.size, on_grid=on_grid
    ).eval()
    of_tasks = [one.tensors[name] for one in example.tasks for name in tensors]
    inputs = [*example.features.maps.values(), *of_tasks]
    free = {2: "height", 3: "width"} if settings.dynamic else {}
    encode_model = to_onnx(encode, [example.images], ["images"], names, {"images": free})
    outputs = list(outputs_of(example.prediction))
    match_model = to_onnx(match, inputs, match.input_names, outputs, dict.fromkeys(names, free))
    if settings.precision == "int8":
        from fastfss.engines.quantization import quantized

        images = [prepared(model, one) for one in calibration]
        encode_model = quantized(encode_model, images)
    graphs = [
        _saved(folder / file, graph)
        for file, graph in ((ENCODE, encode_model), (MATCH, match_model))
    ]
    model.save(folder / WEIGHTS)
    told = settings.options or {}
    size: tuple[Side, Side] = ("height", "width") if settings.dynamic else settings.size
    return Manifest(
        method=model.method,
        settings=model.settings(),
        # As JSON will have them.
        options={k: list(v) if isinstance(v, tuple) else v for k, v in told.items()},
        encode=graphs[0],
        match=graphs[1],
        shots=settings.shots,
        ways=settings.ways,
        image_size=size,
        task=tuple(TensorSpec.of(name, example.tasks[0].tensors[name]) for name in tensors),
        preprocessing=Preprocessing.of(model.frame, model.size, model.encoder),
        output=output_of(model, example, on_grid=on_grid),
        precision=settings.precision,
        check=Check(0.0, 0.0, 0.0, 0, 0.0),
        cost=None,
        weights_sha256=file_digest(folder / WEIGHTS),
        versions={
            "fastfss": fastfss.__version__,
            **{name: metadata.version(name) for name in ("torch", "onnx", "onnxscript")},
            "opset": str(_OPSET),
        },
    )


def _write_packages(
    model: FewShotSegmenter, folder: Path, manifest: Manifest, settings: ExportSettings
) -> None:
    """The graphs for C++, always in float32; programs there enlarge logits bilinearly alone."""
    model = sized(model, settings)
    if manifest.output.stride:
        manifest = replace(manifest, output=replace(manifest.output, on_grid=False, stride=0))
    example = example_of(model, settings)
    encode, match = graphs_of(model, manifest)
    of_tasks = [t for one in example.tasks for t in one.tensors.values()]
    inputs = [*example.features.maps.values(), *of_tasks]
    write_packages(folder, manifest, (encode, [example.images]), (match, inputs))


def output_of(model: FewShotSegmenter, example: Example, *, on_grid: bool) -> Output:
    """What becomes of the match graph's logits."""
    grid = model.grid if on_grid and isinstance(model, GuidedSegmenter) else Grid(0, False)
    margins = margins_of(example.prediction)
    return Output(on_grid, model.grid_corners, grid.stride, grid.fades, margins)


def margins_of(prediction: Prediction) -> Margins:
    """Which of the two rules makes a method's margins of its logits.

    Raises:
        NotImplementedError: neither.
    """
    logits, margins = prediction.logits, prediction.margins
    if torch.allclose(margins, logits[:, 1:] - logits[:, :1], rtol=1e-4, atol=1e-5):
        return "background"
    if torch.allclose(margins, prediction_of(logits).margins, rtol=1e-4, atol=1e-5):
        return "largest other"
    raise NotImplementedError("the method's margins are no function of its logits")


def to_onnx(
    module: torch.nn.Module,
    inputs: Sequence[Tensor],
    names: Sequence[str],
    outputs: Sequence[str],
    free: Mapping[str, Mapping[int, str]],
    *,
    simplified: bool = True,
) -> onnx.ModelProto:
    """Export a module of tensors; inputs that it does not read are left out.

    Args:
        module: with parameters that need no gradient.
        inputs: examples.
        names, outputs: what the graph calls them.
        free: of an input the axes of any size, and what to call them.
        simplified: whether what follows from the inputs' shapes is computed now.

    Raises:
        NotImplementedError: the module is not traceable, as where it makes a free size its own.
    """
    import onnx

    axes = [dict.fromkeys(free.get(name, {}), torch.export.Dim.DYNAMIC) or None for name in names]
    shapes = {"inputs": tuple(axes)} if len(names) > 1 else {"images": axes[0]}
    try:
        # torch warns of its own internals, and prints the whole graph before it raises.
        with (
            references_only(),
            onnx_operators(),
            torch.no_grad(),
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),
            redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module,
                tuple(inputs),
                dynamic_shapes=shapes if any(axes) else None,
                strict=False,
            )
            exported = torch.onnx.export(
                program,
                input_names=list(names),
                output_names=list(outputs),
                opset_version=_OPSET,
                dynamo=True,
                optimize=simplified,
                verbose=False,
            )
    except (UserError, GuardOnDataDependentSymNode, torch.onnx.OnnxExporterError) as error:
        # The exporter's own says how to report it to PyTorch; what it met is below.
        met: BaseException = error
        while isinstance(met, torch.onnx.OnnxExporterError) and met.__cause__ is not None:
            met = met.__cause__
        reason = next((line for line in str(met).splitlines() if line.strip()), "")
        raise NotImplementedError(
            f"no {type(module).__name__} of this method: its shapes or its course depend on values "
            f"({reason})"
        ) from error
    assert exported is not None
    model = folded(exported.model_proto) if simplified else exported.model_proto
    _rename_axes(model, free)
    read = {name for node in model.graph.node for name in node.input}
    for one in [one for one in model.graph.input if one.name not in read]:
        model.graph.input.remove(one)
    onnx.checker.check_model(model)
    return model


def _rename_axes(model: onnx.ModelProto, free: Mapping[str, Mapping[int, str]]) -> None:
    """Free axes get the names asked for; those of outputs the output's name."""
    for one in (*model.graph.input, *model.graph.output):
        for axis, dim in enumerate(one.type.tensor_type.shape.dim):
            if dim.dim_param:
                name = free.get(one.name, {}).get(axis, f"side{axis}")
                dim.dim_param = name if one.name == "images" else f"{one.name}.{name}"
    del model.graph.value_info[:]


def _saved(path: Path, model: onnx.ModelProto) -> GraphSpec:
    """The graph written, and what it is."""
    from fastfss.engines.operators import check_operators

    check_operators(model, path.stem)
    path.write_bytes(model.SerializeToString())
    inputs, outputs = (
        tuple(_spec(one) for one in side) for side in (model.graph.input, model.graph.output)
    )
    return GraphSpec(path.name, file_digest(path), inputs, outputs)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    held = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(held.elem_type)
    shape = tuple(one.dim_param or one.dim_value for one in held.shape.dim)
    return TensorSpec(value.name, shape, str(dtype))


def _checked(
    model: FewShotSegmenter,
    folder: Path,
    manifest: Manifest,
    settings: ExportSettings,
    check_set: Sequence[CheckClass],
    report: Report,
) -> Manifest:
    """The manifest with what the self-check found; EngineError where it fails."""
    check = self_check(sized(model, settings), folder, manifest, settings)
    report(f"self-check in ONNX Runtime, {check.images} images: {check}")
    if check.foreground in (0, 100):
        report("self-check: eager float32 finds one label alone, so that the masks prove nothing")
    manifest = replace(manifest, check=check)
    if settings.precision == "fp32" or not check_set:
        if settings.precision != "fp32":
            report("accuracy cost: not measured; no annotated images were given (--check)")
        return manifest
    cost = measured_cost(folder, manifest, check_set)
    report(
        f"accuracy cost of {settings.precision}: {cost.points:+.2f} points of mIoU "
        f"({cost.exact:.2f} -> {cost.low:.2f}, {cost.classes} classes, {cost.images} images)"
    )
    return replace(manifest, cost=cost)


@contextmanager
def _folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `out` that becomes it when the block ends well.

    Raises:
        FileExistsError: `out` is there, or comes meanwhile.
    """
    _refuse(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    folder.mkdir()
    try:
        yield folder
        old = folder.with_name(f"{folder.name}.old")
        if out.exists():
            _refuse(out, overwrite)
            out.rename(old)
        try:
            folder.rename(out)
        except OSError:
            _refuse(out, overwrite=False)  # another process was first
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        with suppress(OSError):
            shutil.rmtree(folder)


def _refuse(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not (out / MANIFEST).is_file() and any(out.iterdir() if out.is_dir() else [out]):
        raise FileExistsError(f"{out}: is there and no engine folder; it is left as it is")
    if not overwrite:
        raise FileExistsError(f"{out}: is there; --overwrite replaces an engine folder")
