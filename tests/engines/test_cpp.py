"""AOTInductor packages and the C++ program that runs them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfss import engines
from fastfss.engines import EngineError, Manifest
from fastfss.engines.aot import ENCODE_PACKAGE, MATCH_PACKAGE, metadata_of, write_packages
from fastfss.engines.check import label_iou
from fastfss.engines.export import export_engine
from fastfss.engines.graphs import graphs_of
from tests.engines.conftest import Exported
from tests.engines.small import SMALL, fitted, model, photographs

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    build = tmp_path_factory.mktemp("build")
    root = Path(torch.__file__).parent
    for command in (
        ["cmake", "-S", str(SOURCE), "-B", str(build), f"-DTORCH_ROOT={root}"],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "segment"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aot") / "engine"
    settings = SMALL["ssp"].settings()
    export_engine(model("ssp"), folder, settings, aot_inductor=True, report=lambda _: None)
    assert (folder / ENCODE_PACKAGE).is_file() and (folder / MATCH_PACKAGE).is_file()
    return folder


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("shots", [2, 1])
def test_the_cpp_program_segments_as_the_model_does(
    shots: int, program: Path, packages: Path, tmp_path: Path
) -> None:
    task = fitted("ssp", shots=shots)
    task.save(tmp_path / "task.safetensors")
    eager = engines.load(packages, "eager")
    for photo in photographs():
        Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "photo.ppm")
        files = [tmp_path / name for name in ("photo.ppm", "mask.pgm", "task.safetensors")]
        done = run(program, packages, *files)
        assert done.returncode == 0, done.stderr
        assert "% of the pixels in a class" in done.stdout
        found = np.array(Image.open(tmp_path / "mask.pgm"))
        wanted = eager.predict(photo, task).labels
        assert 0.02 < wanted.mean() < 0.98
        assert label_iou(torch.from_numpy(found), torch.from_numpy(wanted)) >= 0.999


@pytest.mark.slow
def test_the_cpp_program_refuses_what_it_cannot_take(
    program: Path, packages: Path, tmp_path: Path
) -> None:
    photo, task = tmp_path / "photo.ppm", tmp_path / "task.safetensors"
    mask, other = tmp_path / "mask.pgm", tmp_path / "other.safetensors"
    Image.fromarray(photographs()[0].permute(1, 2, 0).numpy()).save(photo)
    fitted("ssp").save(task)
    fitted("panet").save(other)
    (tmp_path / "short.ppm").write_bytes(photo.read_bytes()[:200])
    (tmp_path / "short.safetensors").write_bytes(task.read_bytes()[:-64])
    fitted("ssp", shots=3).save(tmp_path / "many.safetensors")
    cases = {
        "a task of another method": (packages, photo, mask, other),
        "the engine takes 1 tasks, got 2": (packages, photo, mask, task, task),
        "expected a binary PPM": (packages, task, mask, task),
        "short.ppm: truncated": (packages, tmp_path / "short.ppm", mask, task),
        "short.safetensors: truncated": (packages, photo, mask, tmp_path / "short.safetensors"),
        "expected a safetensors file": (packages, photo, mask, photo),
        "the engine takes 2 shots": (packages, photo, mask, tmp_path / "many.safetensors"),
        "nowhere.ppm: cannot be read": (packages, tmp_path / "nowhere.ppm", mask, task),
        "error": (tmp_path, photo, mask, task),
    }
    for reason, arguments in cases.items():
        done = run(program, *arguments)
        assert done.returncode == 1
        assert reason in done.stderr
    assert run(program).returncode == 2
    assert not mask.exists()


def test_what_a_program_needs_lies_in_the_package(exported: Exported) -> None:
    about = metadata_of(Manifest.read(exported("ssp")))
    assert about["fastfss_size"] == "65,97"
    assert about["fastfss_mean"] == "0.485,0.456,0.406"
    assert about["fastfss_shots"] == "2"
    assert about["fastfss_task"].split(",") == list(fitted("ssp").tensors)


def test_packages_have_one_size(exported: Exported, tmp_path: Path) -> None:
    folder = exported("panet", dynamic=True)
    manifest = Manifest.read(folder)
    encode, match = graphs_of(model("panet"), manifest)
    with pytest.raises(NotImplementedError, match="only for engines of one size"):
        write_packages(tmp_path, manifest, (encode, []), (match, []))


def test_a_package_that_computes_something_else_is_found_out(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(exported("panet"))
    encode, match = graphs_of(model("panet"), manifest)
    image = torch.randn(1, 3, 64, 64)

    def spoilt(_path: str) -> object:
        return lambda *inputs: [one * 1.01 for one in encode(*inputs)]

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda *_, **__: None)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", spoilt)
    with pytest.raises(EngineError, match=r"encode\.pt2: differs from eager PyTorch by 1\.0e-02"):
        write_packages(tmp_path, manifest, (encode, [image]), (match, []))
