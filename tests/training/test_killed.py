"""The program itself: killed, resumed, and run by two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import fastfss
from fastfss.training import Recipe
from fastfss.training.recipe_files import flat
from tests.training.shapes import tiny_recipe
from tests.training.test_loop import EVERYTHING, equal, rows

# Long enough to be killed in the middle, with all that has a state.
LONG = {
    **EVERYTHING,
    "log": {"every": 2},
    "run": {"steps": 14, "batch": 4, "accumulate": 2, "ema": 0.9},
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def start(
    recipe: Recipe, out: Path, *more: str, processes: int = 1, torchrun: bool = False
) -> list[subprocess.Popen[str]]:
    """`fastfss train` with a recipe as a file; the processes, or torchrun's own."""
    file = out.with_suffix(".toml")
    lines = [f"about = {json.dumps(recipe.about)}"]
    for key, value in flat(recipe).items():
        if "." in key and value is not None and value != {}:
            lines.append(f"{key} = {json.dumps(value)}")
    file.write_text("\n".join(lines) + "\n")
    program, port = [sys.executable, "-m"], str(free_port())
    if torchrun:
        program += ["torch.distributed.run", f"--nproc-per-node={processes}"]
        program += [f"--master-port={port}", "-m"]
    command = [*program, "fastfss", "train", str(file), "--out", str(out), *more]
    root = str(Path(fastfss.__file__).parents[1])
    common = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(1 if torchrun else processes):
        # What torchrun tells them; a test that kills must know every process.
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        told |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": processes}
        if torchrun or processes == 1:
            told = {}
        started.append(
            subprocess.Popen(
                [*command, "--progress", "off", "--device", "cpu"],
                env={**common, **{key: str(value) for key, value in told.items()}},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started: list[subprocess.Popen[str]]) -> str:
    outputs = [process.communicate(timeout=200) for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    return outputs[0][0]


def kill_at(started: list[subprocess.Popen[str]], out: Path, step: int) -> None:
    """SIGKILL all processes once the log has the step."""
    log = out / "log.jsonl"
    while not (log.is_file() and f'"train", "step": {step},' in log.read_text()):
        assert all(process.poll() is None for process in started), started[0].communicate()[1]
        time.sleep(0.01)
    for process in started:
        process.kill()
    for process in started:
        process.communicate()


@pytest.mark.parametrize(
    "processes", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["one process", "two"]
)
def test_a_killed_run_goes_on_bit_for_bit(processes: int, shapes: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shapes, **LONG)
    finish(start(recipe, tmp_path / "whole", processes=processes))
    for number, step in enumerate((6, 10)[:processes]):
        more = ("--resume",) if number else ()
        kill_at(start(recipe, tmp_path / "killed", *more, processes=processes),
                tmp_path / "killed", step)  # fmt: skip
        assert not (tmp_path / "killed" / "model.safetensors").exists()
    out = finish(start(recipe, tmp_path / "killed", "--resume", processes=processes))
    assert "held-out mIoU" in out
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    assert equal(*weights)
    steps = [row["step"] for row in rows(tmp_path / "killed", "train")]
    assert steps == [2, 4, 6, 8, 10, 12, 14]


def test_two_processes_train_on_the_same_episodes_as_one(shapes: Path, tmp_path: Path) -> None:
    # HSNet's loss is a mean over pixels, and nothing in it is drawn.
    recipe = tiny_recipe(
        shapes, "hsnet", model={"encoder": "mobilenet_v2", "layers": []}, transform={"size": 64},
        run={"steps": 3, "batch": 4}, optimiser={"lr": 0.1, "momentum": 0.0}, log={"every": 1},
        validation={"every": 3, "episodes": 5, "minimum": 20}, cache={"maps": "fp32"},
    )  # fmt: skip
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        finish(start(recipe, out, processes=processes, torchrun=processes > 1))
        found.append(out)
        about = json.loads((out / "run.json").read_text())
        assert about["effective_batch"] == 4
        assert about["batch"] == f"{4 // processes} episodes x {processes} processes x 1 parts"
    for one, two in zip(*(rows(out, "train") for out in found), strict=True):
        assert one["total"] == pytest.approx(two["total"], rel=1e-5)
    one, two = (rows(out, "validation")[0]["fb_iou"] for out in found)
    assert one == pytest.approx(two, abs=0.2)
