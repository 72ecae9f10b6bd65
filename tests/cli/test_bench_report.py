"""`fastfss bench report`, as a program over result files of every form."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from fastfss.benchmarks import plots
from fastfss.cli import main

pytest.importorskip("matplotlib", reason='needs matplotlib: ".[bench]"')

ROOT = Path(__file__).parents[2]
CPU = {"commit": "abc1234", "cpu": "Some CPU", "torch": "2.0", "date": "2026-11-01"}
H200 = {"commit": "def5678", "gpu": "NVIDIA H200", "torch": "2.0", "triton": "3", "date": "d"}
POOL = "bench/ops/test_masked_average_pool.py::test_foreground_and_background[1-float32]"
MATCH = "bench/ops/test_dense_match.py::test_pfenet_prior[torch.float32]"
SSP = "bench/methods/test_ssp.py::test_query_with_cached_support[1-float32]"
CPU_ROWS = [
    {
        "benchmark": POOL,
        "published_ms": 4.0,
        "ours_ms": 0.5,
        "plain read_ms": 0.25,
        "ratio": 7.9,
        "of_read": 2,
    },
    {
        "benchmark": MATCH,
        "published_ms": 600.0,
        "plain_ms": 500.0,
        "ours_ms": 50.0,
        "multiply-adds_ms": 1.0,
        "floor_ms": 40.0,
        "ratio": 12,
        "of_floor": 1.25,
    },
    {"benchmark": SSP, "published_ms": 2500.0, "ours_ms": 500.0, "ratio": 5.0},
    {
        "benchmark": "bench/ops/test_self_support.py::test_peak",
        "published_mib": 240,
        "ours_mib": 80,
    },
]
# As bench/gpu.py and bench/gpu_models.py write them.
GPU_ROWS = [
    {
        "case": "dense_match SSP 75% of 1x1024x60x60",
        "dtype": "bfloat16",
        "error": 0.01,
        "ours_us": 80.0,
        "ours_called_us": 95.5,
        "published_us": 955.0,
        "published/ours": 10.0,
        "gb_s": 1000.0,
        "tflop_s": 400.0,
        "of_copy": 0.2,
        "of_products": 0.75,
        "floor_us": 60.0,
        "of_floor": 0.75,
        "compiled_us": 160.0,
        "compiled/ours": 2.0,
    },
    {
        "case": "prototype_match 2 prototypes 1x1024x60x60",
        "dtype": "float16",
        "failed": "no memory",
    },
    {
        "case": "ssp 32x473x473",
        "dtype": "bfloat16",
        "ours_us": 20000.0,
        "ours_sustained_us": 19000.0,
        "ours_called_us": 21000.0,
        "queries_s": 1684,
        "published_float32_us": 30000.0,
        "published_bfloat16_us": 20000.0,
        "published/ours": 48.0,
    },
]
LOOSE = [
    {"method": "ssp", "shots": 1, "split": 0, "miou": 60.0, "query_ms": 20.0},
    {"method": "ssp", "shots": 1, "split": 1, "miou": 70.0, "query_ms": 30.0},
    {"method": "ssp", "noc": {"90": 5.5}, "failures": {"90": 3}, "curve": [1.0, 2.0, 3.0]},
    {"run": "hsnet-cpu", "settings": "s", "step": 100, "miou": 20.0, "loss": 0.1, "seconds": 5},
    {"run": "hsnet-cpu", "settings": "s", "step": 200, "miou": 19.0, "loss": 0.2, "seconds": 9},
    {"colour": "red"},
    17,
]
OF_PYTEST = {
    "machine_info": {"cpu": {"brand_raw": "Another CPU"}},
    "commit_info": {"id": "0123456789abcdef", "dirty": True},
    "datetime": "2026-11-27T10:00:00",
    "benchmarks": [
        {
            "fullname": f"bench/methods/test_shots.py::test_shots[mlc-{shots}]",
            "extra_info": {"method": "mlc", "shots": shots, "peak_mib": 30.0 + shots / 1000},
        }
        for shots in (1, 10_000)
    ]
    + [{"fullname": "bench/data/test_loading.py::test_x", "stats": {"median": 0.25}}],
}


def save(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def report(results: Path, *options: object) -> tuple[int, Path]:
    out = results.parent / "page.md"
    arguments = ("bench", "report", "--results", results, "--out", out, *options)
    return main([str(one) for one in arguments]), out


def line_with(page: str, text: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {text}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return save(
        tmp_path / "results",
        cpu={"machine": CPU, "rows": CPU_ROWS},
        gpu={"machine": H200, "rows": GPU_ROWS},
        loose=LOOSE,
        pytest=OF_PYTEST,
    )


def junit(path: Path, *cases: tuple[str, str, str]) -> Path:
    """A file as pytest writes it: module, test, and what its outcome is called."""
    lines = [
        f'<testcase classname="{module}" name="{name}">{f"<{how}/>" if how else ""}</testcase>'
        for module, name, how in cases
    ]
    path.write_text(f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>")
    return path


def test_times_of_a_video_stand_stage_by_stage(tmp_path):
    stages = {"encode": {"p50_ms": 50.0, "p95_ms": 60.0}, "match": {"p50_ms": 7.0, "p95_ms": 8.0}}
    row = {
        "benchmark": "bench/video/test_session.py::test_propagation[480]",
        "stages": stages,
        "frame": {"p50_ms": 65.0, "p95_ms": 72.0},
        "fps": 15.4,
    }
    code, out = report(save(tmp_path / "results", video={"machine": CPU, "rows": [row]}))
    assert code == 0
    lines = [line for line in out.read_text().splitlines() if line.startswith("| session:")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")][1:4] for line in lines]
    assert cells == [
        ["stages encode", "50.0", "60.0"],
        ["stages match", "7.00", "8.00"],
        ["frame", "65.0", "72.0"],
    ]


def test_several_forms_of_ours_have_floors_of_their_own(tmp_path):
    row = {
        "benchmark": "bench/methods/test_ppnet.py::test_head[1]",
        "published_ms": 800.0,
        "multiply-adds_ms": 30.0,
        "plain read_ms": 1.0,
        "ours, support anew_ms": 80.0,
        "ours, support kept_ms": 4.0,
        "ratio of ours, support kept": 201.0,
        "floor of ours, support anew_ms": 20.0,
        "floor of ours, support kept_ms": 1.0,
    }
    code, out = report(save(tmp_path / "results", cpu={"machine": CPU, "rows": [row]}))
    assert code == 0
    page = out.read_text()
    anew = line_with(page, "ppnet: head [1], ours, support anew")
    kept = line_with(page, "ppnet: head [1], ours, support kept")
    assert anew[1:6] == ["800", "80.0", "10.0x", "20.0", "25 %"]
    assert kept[1:6] == ["800", "4.00", "201x", "1.00", "25 %"]
    assert "floor of ours" not in page


def test_every_form_of_row_reaches_its_table(results, capsys):
    code, out = report(results)
    page = out.read_text()
    assert code == 0
    assert line_with(page, "masked_average_pool") == [
        *("masked_average_pool: foreground and background [1-float32]", "4.00", "0.50", "7.90x"),
        *("0.25", "50 %", "[1], abc1234"),
    ]
    assert line_with(page, "dense_match: ")[1:] == [
        *("600", "50.0", "12.0x", "40.0", "80 %", "[1], abc1234"),
    ]
    assert line_with(page, "ssp: query")[3:6] == ["5.00x", "–", "–"]
    assert line_with(page, "self_support: peak")[1:4] == ["240", "80", "3.00x"]
    assert line_with(page, "dense_match SSP")[1:] == [
        *("955", "95.5", "80.0", "10.0x", "2.00x", "1000", "400", "60.0", "75 %"),
        "[2], def5678",
    ]
    assert line_with(page, "ssp 32x473x473")[5:7] == ["1684", "48.0x"]
    assert line_with(page, "ssp | 1 |")[2:5] == ["65.0", "25.0", "2"]  # the mean of two splits
    assert line_with(page, "hsnet-cpu")[2:5] == ["200", "19.0", "20.0"]
    assert line_with(page, "ssp | – |")[5:9] == ["5.50", "3", "1.00", "–"]
    assert line_with(page, "loading: x")[2] == "250"
    assert "| [4] | Another CPU | 0123456-dirty |" in page
    assert "The tests' state was not checked" in page
    assert capsys.readouterr().out.startswith(f"{out}: ")


def test_what_cannot_be_used_is_named_with_the_reason(results, capsys):
    (results / "broken.json").write_text("{")
    (results / "other.json").write_text('{"a": 1}')
    odd = {"case": "dense_match x", "dtype": "float16", "ours_us": 1.0, "published_us": "long"}
    save(results, odd={"machine": H200, "rows": [odd, {**odd, "ours_us": None}]})
    code, out = report(results)
    said, page = capsys.readouterr().err, out.read_text()
    assert code == 0
    for reason in (
        "gpu.json row 2: prototype_match 2 prototypes 1x1024x60x60 float16 failed: no memory",
        "loose.json row 6: of no known kind; it holds colour",
        "loose.json row 7: expected an object, got int",
        "broken.json: no JSON (",
        "odd.json row 1: its values cannot be shown (",
        "odd.json row 2: dense_match x: expected ours_us, a time, got None",
        "other.json: expected an object with rows, or a list of rows",
    ):
        assert f"left out: {reason}" in said
        assert f"- {reason}" in page


def test_plots_are_made_of_what_the_rows_hold(results):
    _, out = report(results)
    page = out.read_text()
    made = sorted(path.name for path in (out.parent / "page").iterdir())
    assert made == sorted(plots.NAMES)
    for name in made:
        assert f"](page/{name})" in page
        text = (out.parent / "page" / name).read_text()
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    bars = (out.parent / "page" / "speed-up-operations-cpu.svg").read_text()
    assert ">7.90x</text>" in bars and "abc1234" in bars
    assert "ssp, 1-shot" in (out.parent / "page" / plots.ACCURACY).read_text()
    assert "mlc: peak" in (out.parent / "page" / plots.MEMORY).read_text()


def test_the_same_rows_give_the_same_bytes_and_old_plots_go(results):
    def bytes_of() -> dict[str, bytes]:
        _, out = report(results)
        files = [out, *(out.parent / "page").iterdir()]
        return {path.name: path.read_bytes() for path in files}

    first = bytes_of()
    assert bytes_of() == first
    (results / "gpu.json").unlink()
    assert first.keys() - bytes_of().keys() == {
        "speed-up-operations-gpu.svg",
        "speed-up-methods-gpu.svg",
    }


def test_rows_of_red_tests_are_refused(results, tmp_path, capsys):
    tests = junit(
        tmp_path / "junit.xml",
        ("tests.ops.test_dense_match_gradient", "test_gradient[float32]", "failure"),
        ("tests.ops.test_masked_average_pool", "test_values", ""),
        ("tests.methods.test_every_method", "test_loads[hsnet-1]", "error"),
        ("tests.methods.test_ssp.TestClass", "test_scores", ""),
        ("tests.methods.test_mlc", "test_scores", "skipped"),
    )
    code, out = report(results, "--tests", tests)
    said, page = capsys.readouterr().err, out.read_text()
    assert code == 1
    assert "Tests: 5 in junit.xml, 2 failed. None of them is of" in page
    assert "mlc" in page.split("None of them is of")[1].split(".\n")[0]
    # The operation on both machines, and what is made of it.
    for place in ("cpu.json row 2", "cpu.json row 4", "gpu.json row 1"):
        assert f"refused: {place} (" in said and f"- {place} (" in page
    assert "dense_match: tests.ops.test_dense_match_gradient::test_gradient[float32]" in page
    assert "| dense_match" not in page and "| self_support" not in page
    assert line_with(page, "ssp: query") and line_with(page, "masked_average_pool")


def test_green_tests_refuse_nothing(results, tmp_path):
    tests = junit(tmp_path / "junit.xml", ("tests.ops.test_dense_match", "test_x", ""))
    code, out = report(results, "--tests", tests)
    assert code == 0 and "Tests: 1 in junit.xml, 0 failed." in out.read_text()


def test_a_module_that_does_not_import_is_red(results, tmp_path):
    tests = junit(tmp_path / "junit.xml", ("", "tests.ops.test_dense_match", "error"))
    assert report(results, "--tests", tests)[0] == 1


def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys):
    empty = save(tmp_path / "empty")
    assert report(empty)[0] == 2
    assert "--results: expected a folder of JSON files" in capsys.readouterr().err
    results = save(tmp_path / "results", cpu={"machine": CPU, "rows": CPU_ROWS})
    (tmp_path / "no.xml").write_text("<")
    assert report(results, "--tests", tmp_path / "no.xml")[0] == 2
    assert "--tests: expected a file of pytest --junitxml" in capsys.readouterr().err
    assert report(results, "--tests", tmp_path / "absent.xml")[0] == 2
    assert main(["bench", "report", "--results", str(results), "--out", "page.txt"]) == 2
    assert "expected a file ending in .md" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "page.md").exists() and not (tmp_path / "page").exists()


def test_without_matplotlib_the_extra_is_named(results, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert report(results)[0] == 2
    assert 'fastfss bench report needs matplotlib: pip install "fastfss[bench]"' in (
        capsys.readouterr().err
    )


def test_all_rows_of_this_repository_are_read(tmp_path, capsys):
    out = tmp_path / "page.md"
    assert (
        main(["bench", "report", "--results", str(ROOT / "bench/results"), "--out", str(out)]) == 0
    )
    left_out = [line for line in capsys.readouterr().err.splitlines() if "failed:" not in line]
    assert left_out == []
