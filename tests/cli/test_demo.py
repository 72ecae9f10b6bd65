"""fastfss demo, as the README's first command runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

import fastfss
from tests.cli.program import run
from tests.shared import shared


def demo(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run("demo", *arguments, **variables)


def test_the_demo_writes_inputs_results_and_the_command(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(fastfss.create_encoder("resnet18").state_dict(), tmp_path / "random.pth")
    out = tmp_path / "demo"
    result = demo("--weights", str(tmp_path / "random.pth"), "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert "fastfss predict --backbone resnet18" in result.stdout
    assert "IoU with the coins that were not annotated" in result.stdout
    assert {p.name for p in (out / "input").iterdir()} == {
        *("coins_upper.png", "coins_upper_mask.png", "coins_lower.png")
    }
    assert (out / "results" / "coins_lower_overlay.png").is_file()


def test_the_packages_own_model_finds_the_coins_without_a_network(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    result = demo("--out", str(tmp_path / "demo"), **nowhere)
    assert result.returncode == 0, result.stderr
    iou = float(result.stdout.partition("not annotated: ")[2].split()[0])
    assert iou > 0.8


def test_real_weights_find_the_coins(tmp_path: Path) -> None:
    weights = shared("data/backbones/resnet18_to_layer3.safetensors")
    result = demo("--weights", str(weights), "--out", str(tmp_path / "demo"))
    assert result.returncode == 0, result.stderr
    iou = float(result.stdout.partition("not annotated: ")[2].split()[0])
    assert iou > 0.75


def test_without_a_network_one_line_names_the_way_with_a_local_file(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    arguments = ["--weights", "imagenet", "--out", str(tmp_path / "demo")]
    result = demo(*arguments, TORCH_HOME=str(tmp_path), **nowhere)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "could not be downloaded" in line
    assert "weights=<path>" in line
    assert "Traceback" not in result.stderr
