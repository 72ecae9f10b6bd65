"""`fastfss export`, `fastfss engines` and `fastfss predict --engine`, as programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from fastfss import create_model
from fastfss.cli.export import image_size
from fastfss.cli.making import MANY
from fastfss.engines import Manifest
from tests.cli.program import run
from tests.cli.test_predict_program import make_support, run_here, save_photo

MODEL = ("--method", "panet", "--backbone", "resnet18", "--layers", "layer2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a support, and an engine folder made by the program."""
    folder = tmp_path_factory.mktemp("engines")
    image, mask = make_support(folder, 120)
    save_photo("chelsea.png", folder / "photos" / "mirrored.png", 90, mirrored=True)
    save_photo("coffee.png", folder / "photos" / "coffee.png", 110)
    done = run("export", *MODEL, "--size", "64x80", "--out", folder / "engine")
    assert done.returncode == 0, done.stderr
    assert "self-check in ONNX Runtime, 3 images: encode " in done.stdout
    assert f"panet, fp32, 64 x 80, 1 shots, 1 ways -> {folder / 'engine'}" in done.stdout
    assert image.exists() and mask.exists()
    return folder


def predict(files: Path, out: str, *options: object) -> tuple[int, Path]:
    support = ("--support", files / "chelsea.png", files / "chelsea_mask.png")
    query = ("--query", files / "photos", "--out", files / out)
    return run_here("predict", *support, *query, *options), files / out


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {one.name: np.array(Image.open(one)) for one in folder.glob("*_mask.png")}


def test_show_tells_what_a_folder_holds(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("engines", "show", files / "engine") == 0
    said = capsys.readouterr().out
    assert "panet of resnet18, layers layer2" in said
    assert "images: 64 x 80, frame square" in said
    assert "precision: fp32" in said and "self-check: encode" in said


def test_verify_runs_every_engine_and_compares(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("engines", "verify", files / "engine", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert "torch" in report["machine"]
    (results,) = report["engines"].values()
    found = {one["backend"]: one for one in results}
    for backend in ("eager", "onnxruntime", "openvino"):
        assert found[backend]["passed"] and found[backend]["reason"] is None
        assert max(found[backend]["encode"], found[backend]["match"]) < 1e-4
        assert found[backend]["iou"] >= 0.999
    assert "NVIDIA GPU" in found["cuda-graph"]["reason"]


def test_verify_exports_methods_where_no_folder_is_given(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--method", "guided-late", "--size", "64x96", "--backend", "onnxruntime")
    out = files / "found.json"
    assert run_here("engines", "verify", *chosen, "--out", out) == 0
    assert "guided-late fp32\n  onnxruntime: ok" in capsys.readouterr().out
    (results,) = json.loads(out.read_text())["engines"].values()
    assert [one["passed"] for one in results] == [True]
    assert run_here("engines", "verify", files / "engine", *chosen) == 2
    assert "got folders too" in " ".join(capsys.readouterr().err.split())


def test_verify_tells_of_an_engine_that_raises_and_goes_on(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such\nlibrary")

    monkeypatch.setattr("fastfss.engines.onnx_runtime.session", broken)
    chosen = ("--backend", "onnxruntime", "--backend", "eager")
    assert run_here("engines", "verify", files / "engine", *chosen) == 1
    said = capsys.readouterr().out
    assert "onnxruntime: FAILED: no such library" in said
    assert "eager: ok" in said


def test_verify_fails_where_an_engine_is_wrong(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastfss.engines import onnx_runtime

    right = onnx_runtime.run

    def wrong(*arguments: object) -> object:
        return {name: 1.01 * tensor for name, tensor in right(*arguments).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_runtime, "run", wrong)
    assert run_here("engines", "verify", files / "engine", "--backend", "onnxruntime") == 1
    assert "onnxruntime: FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino+eager"])
def test_predict_by_an_engine_gives_the_models_masks(backend: str, files: Path) -> None:
    name = f"by-{backend}"
    code, found = predict(files, name, "--engine", files / "engine", "--backend", backend)
    assert code == 0
    if not (files / "by-eager").exists():
        assert (
            predict(files, "by-eager", "--engine", files / "engine", "--backend", "eager")[0] == 0
        )
    wanted = masks(files / "by-eager")
    assert masks(found).keys() == wanted.keys() and len(wanted) == 2
    for photo, mask in masks(found).items():
        assert mask.shape == wanted[photo].shape
        assert (mask == wanted[photo]).mean() > 0.999
    assert any(mask.any() for mask in wanted.values())


def test_predict_refuses_what_the_engine_has_itself(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ("--engine", files / "engine")
    for option in (("--method", "ssp"), ("--size", 100), ("--backbone", "resnet18"), ("--refine",)):
        assert predict(files, "refused", *engine, *option)[0] == 2
        assert f"{option[0]}: the --engine has its own" in " ".join(capsys.readouterr().err.split())
    assert predict(files, "refused", *MODEL, "--backend", "tensorrt")[0] == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--backend tensorrt runs an --engine; got none" in said
    assert not (files / "refused").exists()


def own_weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    create_model("panet", encoder="resnet18", layers=("layer2",)).save(path)
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_predict_runs_the_encoder_by_the_backend_named(
    files: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = (*MODEL, "--size", 64, "--weights", own_weights(files / "own.safetensors", 1))
    code, wanted = predict(files, f"plain {backend}", *model)
    assert code == 0
    capsys.readouterr()
    code, out = predict(files, backend, *model, "--backend", backend)
    assert code == 0
    if backend == "onnxruntime":  # the first of the two makes the graph
        assert "preparing the encoder, once for these weights" in capsys.readouterr().err
    plain = masks(wanted)
    assert plain.keys() == masks(out).keys() and len(plain) == 2
    for name, mask in masks(out).items():
        assert (mask != plain[name]).mean() < 1e-3


def test_many_queries_get_the_fastest_encoder(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files / "photos", tmp_path / "photos")
    for number in range(MANY):
        shutil.copy(files / "photos" / "coffee.png", tmp_path / "photos" / f"{number}.png")
    support = ("--support", files / "chelsea.png", files / "chelsea_mask.png")
    query = ("--query", tmp_path / "photos", "--out", tmp_path / "out")
    model = (*MODEL, "--size", 72, "--weights")
    assert (
        run_here("predict", *support, *query, *model, own_weights(tmp_path / "a.safetensors", 2))
        == 0
    )
    assert "preparing the encoder" in capsys.readouterr().err
    few = ("--query", files / "photos", "--out", tmp_path / "few")
    assert (
        run_here("predict", *support, *few, *model, own_weights(tmp_path / "b.safetensors", 3)) == 0
    )
    assert "preparing the encoder" not in capsys.readouterr().err


def test_predict_refuses_a_task_of_another_method(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    support = ("--support", files / "chelsea.png", files / "chelsea_mask.png")
    other = ("--method", "ssp", "--backbone", "resnet18", "--layers", "layer2", "--size", 64)
    assert run_here("predict", *support, *other, "--save-task", files / "ssp.safetensors") == 0
    query = ("--query", files / "photos", "--out", files / "refused")
    task = ("--task", files / "ssp.safetensors")
    assert run_here("predict", *task, *query, "--engine", files / "engine") != 0
    assert "task: expected a task of method 'panet'" in capsys.readouterr().err
    assert not list((files / "refused").glob("*_mask.png"))


def test_predict_names_a_folder_that_is_no_engine(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(files, "refused", "--engine", files / "photos")[0] != 0
    assert "expected an engine folder of fastfss export" in capsys.readouterr().err


def test_export_refuses_bad_input_and_writes_nothing(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", files / "none")
    cases = {
        ("--size", "64by80"): "--size: expected HxW in pixels",
        ("--size", "64x80", "--precision", "fp8"): "expected one of fp32, fp16, bf16, int8",
        ("--size", "64x80", "--precision", "int8"): "calibration: expected images like those",
    }
    for options, reason in cases.items():
        assert run_here("export", *MODEL, *out, *options) != 0
        assert reason in " ".join(capsys.readouterr().err.split())
    assert run_here("export", *MODEL, "--size", 64, "--out", files / "photos") != 0
    assert "is there and no engine folder" in capsys.readouterr().err
    assert not (files / "none").exists()
    assert Manifest.read(files / "engine").shots == 1


def test_sizes_are_read() -> None:
    assert image_size("480x640", None) == (480, 640)
    assert image_size("473", None) == (473, 473)
    assert image_size(None, 417) == (417, 417)
    for text in ("0x4", "4x", "x", "1x2x3", "4.5"):
        with pytest.raises(typer.BadParameter, match="expected HxW"):
            image_size(text, None)
    with pytest.raises(typer.BadParameter, match="has no size"):
        image_size(None, None)


def test_build_makes_plans_without_a_gpu(files: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    plans = files / "engine" / "tensorrt-rtx"
    done = run("engines", "build", files / "engine")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" for ")[0] for line in lines] == [
        f"{files / 'engine'}: encode",
        f"{files / 'engine'}: match",
    ]
    assert all("for 8.0 and later: " in line for line in lines)
    assert len(list(plans.glob("*.plan"))) == 2
    done = run("engines", "build", files / "engine", "--capability", "8.9", "--capability", "12.0")
    assert done.returncode == 0, done.stderr
    assert len(list(plans.glob("*.plan"))) == 6


def test_build_refuses_a_gpu_that_the_library_does_not_know(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    assert run_here("engines", "build", files / "engine", "--capability", "9.0") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "capability: expected one of 8.0, 8.6, 8.9, 12.0, 12.1, got 9.0" in said
    assert run_here("engines", "build", files / "photos") == 2
