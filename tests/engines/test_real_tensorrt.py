"""Our graphs in TensorRT's own parser and builder: those of TensorRT for RTX need no GPU.

Nothing runs here: a plan wants the GPU that it is for.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fastfss import create_model, list_models
from fastfss.engines import EngineError, Manifest
from fastfss.engines.examples import ExportSettings
from fastfss.engines.export import export_engine
from fastfss.engines.manifest import ENCODE, MATCH
from fastfss.engines.operators import ALLOWED, check_operators
from fastfss.engines.tensorrt import BuildOptions, TensorRTForRTXEngine, build_ahead
from fastfss.engines.tensorrt.builder import build
from fastfss.engines.tensorrt.library import PORTABLE, TENSORRT_RTX
from fastfss.engines.tensorrt.messages import the_log
from fastfss.engines.tensorrt.plans import PlanStore
from fastfss.engines.verify import METHODS, usual_size, verify
from fastfss.methods.named_models import NAMED_MODELS
from tests.engines.conftest import Exported
from tests.engines.small import SHOTS, SMALL, annotated, model
from tests.engines.test_agreement import LONG
from tests.engines.test_trt_types import api

trt = pytest.importorskip(
    "tensorrt_rtx_bindings", reason='needs TensorRT for RTX: pip install "fastfss[tensorrt-rtx]"'
)
pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")

# One plan for all GPUs, and the first and last kinds alone.
CAPABILITIES = (PORTABLE, "8.0", "8.9", "12.0")
# Besides SMALL's: options of create_model, and the side of the images.
OTHERS: dict[str, tuple[dict[str, object], int]] = {
    "amp": ({}, 65),
    "canet": ({"encoder": "resnet18"}, 65),
    "cue-fusion": ({}, 64),
    "denet": ({"encoder": "resnet18"}, 65),
    "guided-early": ({}, 97),
    "imr-hsnet": ({"encoder": "resnet18", "query_map": "uniform"}, 65),
    "mlc": ({"encoder": "resnet18"}, 65),
    "pgnet": ({"encoder": "resnet18"}, 65),
    "propagation": ({}, 64),
}


def built(path: Path, capability: str = PORTABLE, *, exact: bool = True) -> int:
    """The size of a graph's plan."""
    made = build(
        TENSORRT_RTX,
        path,
        BuildOptions(),
        capability=capability,
        exact=exact,
        ranges={},
        timings=b"",
        report=lambda _: None,
    )
    return len(made.plan)


def assert_builds(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    capabilities: tuple[str, ...] = (PORTABLE,),
) -> None:
    """Both graphs for each kind of GPU, without a warning of the compiler."""
    exact = Manifest.read(folder).precision == "fp32"
    for name in (ENCODE, MATCH):
        for capability in capabilities:
            size = built(folder / name, capability, exact=exact or name == MATCH)
            assert size > 10_000
    said = capfd.readouterr()
    assert "WARNING: in op" not in said.out + said.err


def test_every_exported_method_is_built_here() -> None:
    assert {*SMALL, *OTHERS} == {*list_models()} - {"ppnet"}


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow) if m in (*LONG, "dcama") else m for m in SMALL],
)
def test_methods_are_parsed_whole_and_built(
    method: str, exported: Exported, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = exported(method)
    log = the_log(TENSORRT_RTX)
    for name in (ENCODE, MATCH):
        builder = trt.Builder(log.logger)
        network = builder.create_network(1)
        parser = trt.OnnxParser(network, log.logger)
        assert parser.supports_model_v2((folder / name).read_bytes())
        assert parser.num_subgraphs == 1 and parser.is_subgraph_supported(0)
        nodes = len(onnx.load(str(folder / name)).graph.node)
        assert len(parser.get_subgraph_nodes(0)) == nodes
    # A kind alone is compiled as for all, so two methods will do.
    assert_builds(folder, capfd, CAPABILITIES if method in ("ssp", "panet") else (PORTABLE,))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are not compared with PyTorch: other tests do that."""
    monkeypatch.setattr("fastfss.engines.export._checked", lambda _m, _f, manifest, *_: manifest)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_are_built(
    method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options, side = OTHERS[method]
    torch.manual_seed(0)
    network = create_model(method, **options)  # type: ignore[arg-type]
    own = {k: v for k, v in options.items() if k not in ("encoder", "layers")}
    settings = ExportSettings((side, side), shots=SHOTS, options=own)  # type: ignore[arg-type]
    export_engine(network, tmp_path / "engine", settings, report=lambda _: None)
    assert_builds(tmp_path / "engine", capfd)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precisions_are_built(
    precision: str, exported: Exported, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_builds(exported("panet", precision=precision), capfd)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("method", ["denet", "pgnet", "propagation"])
def test_other_methods_are_built_in_low_precisions(
    method: str, precision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """DENet has batch norm in what it encodes with, propagation normalises."""
    options, side = OTHERS[method]
    torch.manual_seed(0)
    network = create_model(method, **options)  # type: ignore[arg-type]
    settings = ExportSettings((side, side), precision=precision)  # type: ignore[arg-type]
    export_engine(network, tmp_path / "engine", settings, report=lambda _: None)
    assert_builds(tmp_path / "engine", capfd)


def test_int8_is_built(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = copy.deepcopy(model("panet"))
    for one in network.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.uniform_(one.bias, -0.1, 0.1)  # as training leaves it
    images = [annotated((80, 100), 30 + seed)[0] for seed in range(4)]
    settings = SMALL["panet"].settings(precision="int8")
    out = tmp_path / "engine"
    export_engine(network, out, settings, calibration=images, report=lambda _: None)
    assert_builds(out, capfd)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_default_model_is_built(
    precision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = NAMED_MODELS["default"].options
    settings = ExportSettings((96, 128), precision=precision, options=options)  # type: ignore[arg-type]
    images = [annotated((96, 128), seed)[0] for seed in range(2)]
    out = tmp_path / "engine"
    network = create_model("default")
    export_engine(network, out, settings, calibration=images, report=lambda _: None)
    assert_builds(out, capfd)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", METHODS)
def test_published_sizes_are_built(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model(method)
    options = NAMED_MODELS[method].options if method in NAMED_MODELS else {}
    side = usual_size(network)
    settings = ExportSettings((side, side), options=options)
    export_engine(network, tmp_path / "engine", settings, report=lambda _: None)
    for name in (ENCODE, MATCH):
        assert built(tmp_path / "engine" / name) > 10_000


@pytest.mark.parametrize("method", ["panet", "ssp", "guided-late"])
def test_a_dynamic_folder_is_built_with_the_sizes_of_its_maps(
    method: str, exported: Exported, tmp_path: Path
) -> None:
    sizes = ((64, 64), (96, 128), (128, 160))
    folder = exported(method, dynamic=True)
    options = BuildOptions(sizes=sizes, plans=tmp_path / "plans")
    made = list(build_ahead(folder, options=options))
    assert [one.graph for one in made] == ["encode", "match"]
    for one in made:
        found = PlanStore(tmp_path / "plans").read(one.path)
        assert found is not None and len(found[0]) > 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", ["cue-fusion", "mlc"])
def test_other_dynamic_folders_are_built(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = ExportSettings((96, 96), shots=SHOTS, dynamic=True)
    export_engine(create_model(method), tmp_path / "engine", settings, report=lambda _: None)
    assert len(list(build_ahead(tmp_path / "engine"))) == 2


def test_turing_is_refused_for_the_reason_that_we_give(exported: Exported) -> None:
    """1.4 had float32 products there, 1.7 has none; another version may have them again."""
    if trt.__version__ != api("rtx")["version"]:
        pytest.skip(f"known of {api('rtx')['version']}, {trt.__version__} is installed")
    known = TENSORRT_RTX.capabilities()
    assert "7.5" not in known and trt.ComputeCapability.SM75
    log = the_log(TENSORRT_RTX)
    builder = trt.Builder(log.logger)
    network = builder.create_network(1)
    parser = trt.OnnxParser(network, log.logger)
    assert parser.parse_from_file(str(exported("panet") / MATCH))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    assert builder.build_serialized_network(network, config) is None
    assert "FP32 GEMM is not supported" in log.taken()


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["ssp", "panet", "guided-late"])
def test_engines_on_the_gpu_agree_with_pytorch(
    method: str, exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported(method), tmp_path / "engine"))
    device = torch.device("cuda")
    if (reason := TensorRTForRTXEngine.why_not(Manifest.read(folder), device)) is not None:
        pytest.skip(reason)
    (first,) = verify(folder, device="cuda", backends=["tensorrt-rtx"])
    assert first.passed, str(first)
    (again,) = verify(folder, device="cuda", backends=["tensorrt-rtx"])
    assert again.passed, str(again)
    assert "plan from" in again.notes and "CUDA graph" not in again.notes


def test_the_gpus_that_it_knows_are_those_of_the_documentation() -> None:
    assert {"8.0", "8.6", "8.9", "12.0", "12.1"} <= TENSORRT_RTX.capabilities().keys()
    assert "9.0" not in TENSORRT_RTX.capabilities(), "an H200 refused every plan of 1.7"


# ---- The list of operators


@pytest.mark.parametrize("version", ALLOWED)
def test_the_parser_knows_every_operator_of_the_list(version: str) -> None:
    log = the_log(TENSORRT_RTX)
    builder = trt.Builder(log.logger)
    network = builder.create_network(1)
    parser = trt.OnnxParser(network, log.logger)
    assert not [one for one in ALLOWED[version] if not parser.supports_operator(one)]
    assert not [one for one in ("Unique", "Compress", "Col2Im") if parser.supports_operator(one)]


# ScatterND's and ScatterElements' third input, and what each is told to do.
SCATTERED = np.ones((1, 3, 8, 8), np.float32)
MANY = np.array([3841])
USES: dict[str, tuple[onnx.NodeProto, dict[str, np.ndarray]]] = {
    "antialias": (
        helper.make_node("Resize", ["x", "", "half"], ["y"], mode="linear", antialias=1),
        {"half": np.array([1, 1, 0.5, 0.5], np.float32)},
    ),
    "large k": (helper.make_node("TopK", ["x", "k"], ["y", "i"]), {"k": MANY}),
    "scatter-add": (
        helper.make_node("ScatterND", ["x", "at", "new"], ["y"], reduction="add"),
        {"at": np.array([[0]]), "new": SCATTERED},
    ),
    "scattered elements": (
        helper.make_node("ScatterElements", ["x", "at", "new"], ["y"], axis=3, reduction="add"),
        {"at": np.zeros((1, 3, 8, 8), np.int64), "new": SCATTERED},
    ),
    "pool indices": (helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]), {}),
}


@pytest.mark.parametrize("use", USES)
def test_uses_that_we_refuse_are_those_that_it_refuses(use: str, tmp_path: Path) -> None:
    node, constants = USES[use]
    shape = [1, 3, 8, 8000] if use == "large k" else [1, 3, 8, 8]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    kinds = {"y": TensorProto.FLOAT, "i": TensorProto.INT64}
    results = [helper.make_tensor_value_info(name, kinds[name], None) for name in node.output]
    held = [onnx.numpy_helper.from_array(one, name) for name, one in constants.items()]
    graph = helper.make_graph([node], "graph", values, results, held)
    opsets = [helper.make_opsetid("", 20)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(made, str(tmp_path / "use.onnx"))
    with pytest.raises(EngineError, match=f"use: node {node.op_type}: "):
        check_operators(made, "use")
    with pytest.raises(EngineError, match=r"TensorRT for RTX cannot (parse|build) it: "):
        built(tmp_path / "use.onnx")
