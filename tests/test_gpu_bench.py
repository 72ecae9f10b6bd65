"""bench.gpu without a GPU: its cases compute what the published code does; its arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_cases

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SMALL = [
    gpu_cases.pool(2, 8, 5, 13, "mask"),
    gpu_cases.pool(1, 8, 5, 13, "features"),
    gpu_cases.prototypes(2, 8, 5, 3),
    gpu_cases.prototypes(1, 8, 5, 2, each=True),
    gpu_cases.correlation(1, 8, 3, 4),
    gpu_cases.self_support(2, 8, 5, 0.75),
    gpu_cases.self_support_gradient(1, 8, 5, 0.75),
    gpu_cases.prior(1, 8, 5, 0.4),
    gpu_cases.attention(2, 8, 5),
    gpu_cases.pool(2, 8, 5, 13, "mask", last=True),
    gpu_cases.prototypes(2, 8, 5, 3, last=True),
    gpu_cases.correlation(2, 8, 3, 4, last=True),
    gpu_cases.learner(1, (8, 4, 2)),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_ours_reference_and_published_form_of_a_case_agree(case):
    inputs = case.inputs(torch.float32, CPU)
    assert gpu.check(case, torch.float32, inputs) < 1e-5
    if case.reference is not None:
        torch.testing.assert_close(case.reference(*inputs), case.ours(*inputs))


def test_a_wrong_result_is_an_error_that_names_the_case():
    case = SMALL[0]
    wrong = gpu_cases.Case(
        case.name, case.inputs, lambda *a: case.ours(*a) * 1.1, case.published, None, case.work
    )
    with pytest.raises(RuntimeError, match=r"^masked_average_pool mask .* differs by 1\.00e-01"):
        gpu.check(wrong, torch.float32, case.inputs(torch.float32, CPU))


def test_work_is_that_of_the_specification():
    by_name = {case.name: case for case in gpu_cases.CASES}
    moved, flop = by_name["dense_match SSP 75% of 1x1024x60x60"].work(torch.bfloat16)
    assert flop == 4 * 1024 * 3600 * 2700  # 39.8 GFLOP
    assert moved == 2 * 1024 * 3600 * 2
    levels = [by_name[name].work(torch.bfloat16) for name in by_name if "layers 1x" in name]
    assert sum(flop for _, flop in levels) == pytest.approx(30.7e9, rel=0.002)
    moved, _ = by_name["prototype_match 2 prototypes 1x1024x60x60"].work(torch.float16)
    assert round(moved / 1e6, 1) == 7.4


def test_a_row_holds_rates_and_shares_of_the_ceilings():
    limits = gpu.Ceilings(copy=4e12, products=800e12)
    row = limits.row(1e-4, 100e6, 8e9)
    assert row["gb_s"] == 1000 and row["of_copy"] == 0.25
    assert row["tflop_s"] == 80 and row["of_products"] == 0.1
    assert row["floor_us"] == 25 and row["of_floor"] == 0.25  # the bytes' floor is the larger


def test_inputs_rotate_through_more_than_the_l2():
    for case in gpu_cases.CASES:
        for dtype in gpu.DTYPES:
            sets, moved = gpu.sets_for(case, dtype), case.work(dtype)[0]
            assert sets >= 2
            assert sets * moved > 60 << 20 or sets == gpu.MOST_SETS


def test_measure_makes_a_row_and_times_every_set(monkeypatch):
    calls: list[int] = []

    def clock(functions):
        calls.append(len(functions))
        functions[0]()
        return 2e-6

    monkeypatch.setattr(gpu, "ROTATION_BYTES", 3 * SMALL[0].work(torch.float32)[0])
    limits = gpu.Ceilings(1e12, 1e15)
    row = gpu.measure(SMALL[0], torch.float32, limits, device=CPU, by_graph=clock, one_by_one=clock)
    assert calls == [3, 3, 3]
    assert (row["ours_us"], row["published/ours"]) == (2.0, 1.0)
    assert row["dtype"] == "float32"


def test_a_case_that_fails_is_a_row_that_says_why():
    limits = gpu.Ceilings(1e12, 1e15)
    case = SMALL[0]
    wrong = gpu_cases.Case(
        case.name, case.inputs, lambda *a: case.ours(*a) * 1.1, case.published, None, case.work
    )
    row = gpu.attempt(wrong, torch.float32, limits, CPU)
    assert row["case"] == case.name and "differs by" in row["failed"]


def test_every_product_with_configurations_can_be_tuned():
    pytest.importorskip("triton")
    names = {name for name, _, _ in gpu.tunable()}
    kernels = (ROOT / "fastfss" / "kernels").glob("*.py")
    text = "".join(path.read_text() for path in kernels)
    assert all(f'"{name}"' in text for name in names)
    assert all(
        len(configs) > 1 for _, _, by_dtype in gpu.tunable() for configs in by_dtype.values()
    )


def test_tune_prints_every_configuration(monkeypatch, capsys):
    pytest.importorskip("triton")
    from fastfss.kernels import _launch, dense_correlation

    monkeypatch.setattr(gpu, "CASES", SMALL)
    seen = []

    def clock(functions):
        seen.append(_launch.overrides["dense_correlation"])
        return 1e-6

    gpu.tune(["dense_correlation"], device=CPU, clock=clock)
    assert seen == dense_correlation.CONFIGS + dense_correlation.CONFIGS_FLOAT32
    assert not _launch.overrides
    assert capsys.readouterr().out.count("Config(") == len(seen)


def test_rows_are_written_one_a_line(tmp_path):
    path = tmp_path / "rows.json"
    gpu.write(path, {"commit": gpu.commit()}, [{"case": "a"}, {"case": "b"}])
    assert [row["case"] for row in json.loads(path.read_text())["rows"]] == ["a", "b"]
    assert len(path.read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--out", "rows.json"], 1, "bench.gpu: torch sees no NVIDIA GPU"),
        (["--tune"], 1, "bench.gpu: torch sees no NVIDIA GPU"),
        ([], 2, "--out FILE.json or --tune is needed"),
    ],
    ids=["measure", "tune", "neither"],
)
def test_without_a_gpu_it_says_so_in_one_line(tmp_path, arguments, status, message):
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (ROOT / "rows.json").exists()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [gpu_cases.prototypes(1, 64, 20, 2), gpu_cases.self_support_gradient(1, 64, 20, 0.75)],
    ids=lambda case: case.name,
)
def test_one_case_on_the_gpu(case):
    device = torch.device("cuda")
    row = gpu.measure(case, torch.bfloat16, gpu.ceilings(), device=device)
    assert row["ours_us"] > 0
    if case.reference is not None:
        assert gpu.measure_compiled(case, torch.bfloat16, device=device) > 0
