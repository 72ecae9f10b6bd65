"""`fastfss env` as a program."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

import fastfss
from tests.cli.program import environment, run


def fastfss_env(*arguments: str) -> str:
    done = run("env", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_text_begins_with_the_version_and_says_what_each_backend_is():
    lines = fastfss_env().splitlines()
    assert lines[0].startswith("fastfss:")
    assert fastfss.__version__ in lines[0]
    for name in ("native", "cuda", "triton", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"):
        (line,) = [line for line in lines if line.startswith(f"backend {name}:")]
        assert line.split(":")[1].strip() in ("on", "off")


def test_json_is_one_object():
    found = json.loads(fastfss_env("--json"))
    assert found["fastfss"] == fastfss.__version__
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_module_prints_the_same_without_the_command_lines_extra():
    hide_typer = "import sys, runpy; sys.modules['typer'] = None; "
    run = "runpy.run_module('fastfss.environment', run_name='__main__')"
    command = [sys.executable, "-W", "error", "-c", hide_typer + run]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == fastfss_env()
