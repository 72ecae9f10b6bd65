"""Reading result files: every row with its area, its machine and what its tests are called.

Three forms are read: an object with `machine` and `rows`, a bare list of rows, and what
pytest-benchmark writes (`--benchmark-json`). What cannot be used is told with the reason, and
costs the other rows nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Area = Literal[
    "operations-cpu",
    "operations-gpu",
    "methods",
    "methods-gpu",
    "engines",
    "scaling",
    "video",
    "clicks",
    "accuracy",
    "training",
    "other",
]

# Folders below bench/, and where their rows belong.
_FOLDERS: dict[str, Area] = {
    "ops": "operations-cpu",
    "methods": "methods",
    "engines": "engines",
    "video": "video",
    "interactive": "clicks",
    "accuracy": "accuracy",
    "training": "training",
}
# Areas of which a whole folder of tests answers, not the tests of one operation.
_TESTED_BY: dict[Area, str] = {
    "engines": "engines/",
    "video": "video/",
    "clicks": "interactive/",
    "training": "training/",
}
_SCALING = ("test_shots.py", "test_ways.py")
# Benchmarks that are called otherwise than what they measure.
_SUBJECTS: dict[str, tuple[str, ...]] = {
    "self_support": ("ssp", "dense_match", "masked_average_pool"),
    "guided": ("guided",),
}
# Methods' names in rows, and those of their tests.
_VARIANTS = {
    "plain_prototypes": "mlc",
    "dense_matching": "propagation",
    "label_propagation": "propagation",
    "ssp_refined": "ssp",
    "default": "cue_fusion",
}
_SETS = ("coco", "clothing", "objects", "defects")


@dataclass(frozen=True)
class Machine:
    """What rows were measured on, as far as the file says it."""

    file: str
    hardware: str
    commit: str
    torch: str
    date: str
    command: str


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        area: the part of the page it belongs to.
        subjects: what its tests are called: operations and methods with underscores, or a folder
            of tests with a slash after it.
        machine: what it was measured on.
        place: file and number, for messages.
        values: what it holds.
    """

    area: Area
    subjects: tuple[str, ...]
    machine: Machine
    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """A file or row that is not on the page."""

    place: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


def read_results(folder: Path) -> tuple[list[Row], list[LeftOut]]:
    """The rows of all JSON files of a folder, in the order of their names.

    Args:
        folder: bench/results.

    Raises:
        ValueError: no JSON file is there.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"--results: expected a folder of JSON files, got '{folder}'")
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    for path in files:
        try:
            machine, found = _read_file(path)
        except (OSError, ValueError) as error:
            left_out.append(LeftOut(path.name, str(error)))
            continue
        for number, values in enumerate(found, start=1):
            place = f"{path.name} row {number}"
            row = _row(values, machine, place)
            (rows if isinstance(row, Row) else left_out).append(row)  # type: ignore[arg-type]
    return rows, left_out


def _read_file(path: Path) -> tuple[Machine, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from None
    if isinstance(content, dict) and isinstance(content.get("benchmarks"), list):
        return _machine_of_pytest(path.name, content), _rows_of_pytest(content["benchmarks"])
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError("expected an object with rows, or a list of rows")
    about = content if isinstance(content, dict) else _first_with_machine(rows)
    return _machine(path.name, about), rows


def _first_with_machine(rows: Sequence[Any]) -> Mapping[str, Any]:
    return next((row for row in rows if isinstance(row, dict) and "machine" in row), {})


def _machine(file: str, about: Mapping[str, Any]) -> Machine:
    told = about.get("machine")
    told = told if isinstance(told, dict) else {"cpu": told, **about}
    hardware = [str(told[key]) for key in ("gpu", "cpu") if told.get(key)]
    day = re.search(r"\d{4}-\d\d-\d\d", file)
    return Machine(
        file,
        ", ".join(hardware) or "not recorded",
        str(told.get("commit") or "not recorded"),
        str(told.get("torch") or "not recorded"),
        str(told.get("date") or (day.group() if day else "not recorded")),
        str(told.get("command") or told.get("what") or "not recorded"),
    )


def _machine_of_pytest(file: str, content: Mapping[str, Any]) -> Machine:
    about, commit = content.get("machine_info") or {}, content.get("commit_info") or {}
    cpu = about.get("cpu") or {}
    name = str(commit["id"])[:7] if commit.get("id") else "not recorded"
    return Machine(
        file,
        str(cpu.get("brand_raw") or about.get("processor") or "not recorded"),
        f"{name}-dirty" if commit.get("dirty") else name,
        str(about.get("torch") or "not recorded"),
        str(content.get("datetime") or "not recorded").partition("T")[0],
        "pytest --benchmark-json",
    )


def _rows_of_pytest(benchmarks: Sequence[Any]) -> list[Any]:
    """Every benchmark's own figures; the median time where it recorded none."""
    rows: list[Any] = []
    for one in benchmarks:
        if not isinstance(one, dict):
            rows.append(one)
            continue
        figures = dict(one.get("extra_info") or {})
        median = (one.get("stats") or {}).get("median")
        if not figures and isinstance(median, int | float):
            figures["ours_ms"] = round(1e3 * median, 4)
        rows.append({"benchmark": one.get("fullname"), **figures})
    return rows


def _row(values: Any, machine: Machine, place: str) -> Row | LeftOut:
    if not isinstance(values, dict):
        return LeftOut(place, f"expected an object, got {type(values).__name__}")
    if "failed" in values:
        case = values.get("case", values.get("benchmark", ""))
        return LeftOut(place, f"{case} {values.get('dtype', '')} failed: {values['failed']}")
    if isinstance(values.get("benchmark"), str):
        return _of_benchmark(values, machine, place)
    if isinstance(values.get("case"), str):
        return _of_case(values, machine, place)
    area, named = _area_of_loose(values)
    if area is None:
        keys = ", ".join(list(values)[:6]) or "nothing"
        return LeftOut(place, f"of no known kind; it holds {keys}")
    return Row(area, _subjects(area, named), machine, place, values)


def _of_benchmark(values: Mapping[str, Any], machine: Machine, place: str) -> Row | LeftOut:
    name = values["benchmark"]
    found = re.match(r"(?:.*/)?bench/(?:(\w+)/)?(test_(\w+)\.py)::", name)
    if len(values) == 1:
        return LeftOut(place, f"{name} recorded no figures")
    if found is None:  # measured by hand
        engines = any(isinstance(one, dict) and "encode_ms" in one for one in values.values())
        area: Area = "engines" if engines else "other"
        return Row(area, ("engines/",) if engines else (), machine, place, values)
    folder, file, stem = found.groups()
    area = "scaling" if file in _SCALING else _FOLDERS.get(folder or "", "other")
    named = str(values.get("method", stem)) if area in ("scaling", "accuracy") else stem
    return Row(area, _subjects(area, named), machine, place, values)


def _of_case(values: Mapping[str, Any], machine: Machine, place: str) -> Row | LeftOut:
    words = values["case"].removeprefix("gradient of ").split()
    ours = values.get("ours_us")
    if not isinstance(ours, int | float) or not ours > 0 or not words:
        return LeftOut(place, f"{values['case']}: expected ours_us, a time, got {ours!r}")
    # A whole method's case is "ssp 32x473x473".
    method = len(words) == 2 and "published_float32_us" in values
    area: Area = "methods-gpu" if method else "operations-gpu"
    return Row(area, _subjects(area, words[0]), machine, place, values)


def _area_of_loose(values: Mapping[str, Any]) -> tuple[Area | None, str]:
    """The area of a row without a benchmark's name, and what it is of."""
    method = str(values.get("method", values.get("model", "")))
    if "noc" in values:
        return "clicks", method
    if "run" in values or "bench" in values:
        return "training", str(values.get("run", values.get("recipe", "")))
    figures = ("miou", "auroc presence", *_SETS)
    if any(isinstance(values.get(key), int | float) for key in figures):
        return "accuracy", "mlc" if "variant" in values else method
    return None, ""


def _subjects(area: Area, named: str) -> tuple[str, ...]:
    folder = _TESTED_BY.get(area)
    if folder is not None:
        return (folder,)
    stem = named.partition(",")[0].strip().lower().replace("-", "_").replace(" ", "_")
    stem = _VARIANTS.get(stem, stem)
    return _SUBJECTS.get(stem, (stem,))
