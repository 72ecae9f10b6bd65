"""``fastfss eval`` as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfss import create_model

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of coloured rectangles, a folder each."""
    root = tmp_path_factory.mktemp("data")
    for number, colour in enumerate(((220, 30, 30), (30, 220, 30), (30, 30, 220), (200, 200, 30))):
        folder = root / f"class{number}"
        folder.mkdir()
        for image in range(1, 5):
            generator = np.random.default_rng(10 * number + image)
            pixels = generator.integers(0, 60, (48, 64, 3), dtype=np.uint8)
            mask = np.zeros((48, 64), np.uint8)
            top, left = generator.integers(2, 20, 2)
            mask[top : top + 20, left : left + 26] = 255
            pixels[mask > 0] = colour
            Image.fromarray(pixels).save(folder / f"{image}.jpg", quality=95)
            Image.fromarray(mask).save(folder / f"{image}.png")
    return root


def run(*arguments: object, processes: int = 0) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable]
    if processes:
        launch += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        launch += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [*launch, "-m", "fastfss", "eval", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def common(data: Path, out: Path, *more: object) -> list[object]:
    return [
        *("--protocol", "classes", "--set", "folder", "--data", data, "--out", out, "--folds", 2),
        *("--backbone", "resnet18", "--layers", "layer1", "--size", 48, "--pictures", 2, *more),
    ]


def test_all_folds_give_results_and_a_page_that_loads_nothing(data: Path, tmp_path: Path) -> None:
    done = run(*common(data, tmp_path / "out", "--episodes", 2))
    assert done.returncode == 0, done.stderr
    assert "mean of 2 folds: mIoU" in done.stdout
    assert "random weights: the figures mean nothing" in done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["fold"] for one in found["folds"]] == [0, 1]
    mious = [one["miou"] for one in found["folds"]]
    assert found["mean"]["miou"] == pytest.approx(sum(mious) / 2, abs=1e-5)
    names = {name for one in found["folds"] for name in one["class_iou"]}
    assert names == {"class0", "class1", "class2", "class3"}
    for one in found["folds"]:
        assert one["episodes"] == 4
        assert one["interval_95"][0] <= one["miou"] <= one["interval_95"][1]
        assert len(one["hash"]) == 64
        assert one["seconds"] > 0 and one["peak_mib"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "http://" not in page and "https://" not in page
    assert page.count("<figure>") == 4
    assert "the number of episodes is not the published" in page


def test_batches_give_the_same_figures_and_other_sizes_another_hash(
    data: Path, tmp_path: Path
) -> None:
    found = []
    for name, more in (("a", ()), ("b", ("--batch", 3)), ("c", ("--size", 56))):
        done = run(*common(data, tmp_path / name, "--fold", 0, *more))
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / name / "results.json").read_text())["folds"][0])
    assert found[0]["miou"] == found[1]["miou"] and found[0]["hash"] == found[1]["hash"]
    assert found[0]["hash"] != found[2]["hash"]


def test_one_fold_has_no_mean_and_its_episodes_can_be_kept(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "episodes.json"
    first = run(*common(data, tmp_path / "a", "--fold", 1, "--save-episodes", kept))
    assert first.returncode == 0, first.stderr
    assert "mean" not in json.loads((tmp_path / "a" / "results.json").read_text())
    again = run(*common(data, tmp_path / "b", "--fold", 1, "--episodes-file", kept))
    assert again.returncode == 0, again.stderr
    folds = [json.loads((tmp_path / n / "results.json").read_text())["folds"][0] for n in "ab"]
    assert folds[0]["miou"] == folds[1]["miou"]
    assert folds[0]["hash"] == folds[1]["hash"]


def test_a_list_of_another_fold_is_no_result(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "episodes.json"
    first = run(*common(data, tmp_path / "a", "--fold", 0, "--save-episodes", kept))
    assert first.returncode == 0, first.stderr
    for change, message in (
        (("--fold", 1), "episodes: expected a list of the fold's classes"),
        (("--fold", 0, "--shots", 2), "episodes: expected a list of 2 shots, got one of 1"),
    ):
        wrong = run(*common(data, tmp_path / "b", *change, "--episodes-file", kept))
        assert wrong.returncode == 2
        assert message in " ".join(wrong.stderr.split())
        assert not (tmp_path / "b" / "results.json").exists()


def test_a_later_folds_weights_are_missed_before_the_first_is_evaluated(
    data: Path, tmp_path: Path
) -> None:
    model = create_model("ssp", encoder="resnet18", layers=("layer1",))
    for name in ("w0", "broken0"):
        model.save(tmp_path / f"{name}.safetensors")
    (tmp_path / "broken1.safetensors").write_bytes(b"no tensors")
    for name in ("w", "broken"):
        weights = tmp_path / (name + "{fold}.safetensors")
        done = run(*common(data, tmp_path / "out", "--weights", weights))
        assert done.returncode == 2
        assert f"{name}1.safetensors" in done.stderr.replace("\n", "")
        assert "mIoU" not in done.stdout


@pytest.mark.slow
def test_two_processes_give_the_same_figures(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the same arithmetic in all of them
    entries = []
    for processes in (0, 2):
        out = tmp_path / str(processes)
        done = run(*common(data, out, "--fold", 0), processes=processes)
        assert done.returncode == 0, done.stderr
        (entry,) = json.loads((out / "results.json").read_text())["folds"]
        entries.append({k: v for k, v in entry.items() if k in ("miou", "fb_iou", "interval_95")})
    assert entries[0] == entries[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--protocol", "mine"], "protocol: expected one of classes"),
        (["--fold", "2"], "--fold: expected 0 to 1 or all, got 2"),
        (["--data", "/nowhere"], "expected the folder of a data set, got no such folder"),
        (["--set", "video"], "kind: expected one of"),
        (["--shots", "9"], "data: expected a class with at least 10 images"),
        (["--protocol", "hsnet", "--shots", "9"], "images of class"),
        (["--weights", "/nowhere.pth"], "/nowhere.pth"),
        (["--method", "sspp"], "method: expected one of default"),
        (["--refinement", "none"], "--refinement is of clicks and davis, got --protocol"),
        (["--episodes-file", "/nowhere.json", "--fold", "0"], "/nowhere.json"),
    ],
    ids=lambda one: one if isinstance(one, str) else one[1],
)
def test_bad_input_is_one_clear_line(
    data: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    arguments = [str(one) for one in common(data, tmp_path / "out")]
    for name, value in zip(change[::2], change[1::2], strict=True):
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    done = run(*arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "results.json").exists()


def test_clicks_are_counted(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="not installed: pip install fastfss[interactive]")
    common = ["--protocol", "clicks", "--data", data, "--backbone", "resnet18"]
    common += ["--layers", "layer1", "--size", 48, "--method", "mlc", "--episodes", 3]
    done = run(*common, "--refinement", "none", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "NoC@90" in done.stdout
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["objects"] == 3 and len(found["curve"]) == 20
    assert all(1 <= noc <= 20 for noc in found["noc"].values())
    wrong = run(*common, "--refinement", "sharp", "--out", tmp_path / "wrong")
    assert wrong.returncode == 2
    assert "refinement: expected one of none, guided, grabcut" in wrong.stderr
    assert not (tmp_path / "wrong" / "results.json").exists()


def test_protocols_are_listed() -> None:
    done = run("--list-protocols")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("hsnet", "panet", "clicks"))
