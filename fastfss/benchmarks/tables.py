"""Tables in Markdown, one a kind of row."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastfss.benchmarks.rows import Machine, Row
from fastfss.benchmarks.timings import short_name, timings

Table = tuple[list[str], list[list[str]]]
Where = Callable[[Machine], str]

NONE = "–"
ON = "measured on"
# What tells rows of one measurement apart, beside text; other numbers are figures.
_IDENTITY = ("shots", "ways", "size")
_MEDIAN = " p50_ms"
# Repetitions, of which means are shown.
_REPEATED = ("split", "seed")


def figure(value: Any) -> str:
    """A number with three digits at least, as people read it; text as it is."""
    if value is None:
        return NONE
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|")
    if isinstance(value, int) or abs(value) >= 1000:
        return str(round(value))
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def markdown(table: Table) -> str:
    """The table; columns of numbers to the right."""
    header, lines = table
    columns = zip(*lines, strict=True)
    rule = ["---:" if all(map(_is_number, column)) else "---" for column in columns]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def _is_number(cell: str) -> bool:
    return cell == NONE or re.fullmatch(r"-?[\d.]+(e-?\d+)?(x| %)?", cell) is not None


def _times(value: float | None) -> str:
    return NONE if value is None else f"{figure(value)}x"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} %"


def of_times(rows: Iterable[Row], where: Where) -> Table:
    """Times in milliseconds; ratio, floor and percent of the floor beside each."""
    header = ["what", "published, ms", "ours, ms", "ratio", "floor, ms", "percent of floor", ON]
    lines = [
        [
            figure(one.what),
            figure(one.published),
            figure(one.ours),
            _times(one.ratio),
            figure(one.floor),
            _percent(one.percent_of_floor),
            where(one.row.machine),
        ]
        for row in rows
        for one in timings(row)
    ]
    return header, lines


def of_gpu_operations(rows: Iterable[Row], where: Where) -> Table:
    """As `bench/gpu.py` writes them, in microseconds."""
    header = [
        *("what", "published, us", "ours called, us", "ours in a graph, us", "ratio"),
        *("compiled / ours", "GB/s", "TFLOP/s", "floor, us", "percent of floor", ON),
    ]
    lines = [
        [
            figure(short_name(row.values)),
            *(figure(row.values.get(key)) for key in ("published_us", "ours_called_us", "ours_us")),
            _times(row.values.get("published/ours")),
            _times(row.values.get("compiled/ours")),
            *(figure(row.values.get(key)) for key in ("gb_s", "tflop_s", "floor_us")),
            _percent(timings(row)[0].percent_of_floor),
            where(row.machine),
        ]
        for row in rows
    ]
    return header, lines


def of_gpu_methods(rows: Iterable[Row], where: Where) -> Table:
    """As `bench/gpu_models.py` writes them, in microseconds."""
    keys = {
        "published float32, one query, us": "published_float32_us",
        "published bfloat16, one query, us": "published_bfloat16_us",
        "ours, the batch, us": "ours_us",
        "ours sustained, us": "ours_sustained_us",
        "queries a second": "queries_s",
    }
    lines = [
        [
            figure(short_name(row.values)),
            *(figure(row.values.get(key)) for key in keys.values()),
            _times(row.values.get("published/ours")),
            where(row.machine),
        ]
        for row in rows
    ]
    return ["what", *keys, "ratio", ON], lines


def of_memory(rows: Iterable[Row], where: Where) -> Table:
    """Peak memory beside the published form's."""
    lines = []
    for row in rows:
        published, ours = row.values.get("published_mib"), row.values.get("ours_mib")
        if ours is not None:
            ratio = None if published is None or not ours else published / ours
            name = figure(short_name(row.values))
            lines.append([name, figure(published), figure(ours), _times(ratio), where(row.machine)])
    return ["what", "published, MiB", "ours, MiB", "ratio", ON], lines


def of_engines(rows: Iterable[Row], where: Where) -> Table:
    """Rows with one object an engine."""
    keys = {
        "encode, ms": "encode_ms",
        "match, ms": "match_ms",
        "load, s": "load_s",
        "first, s": "first_s",
        "IoU with PyTorch": "iou",
    }
    lines = [
        [
            figure(f"{short_name(row.values)}, {engine}"),
            *(figure(found.get(key)) for key in keys.values()),
            where(row.machine),
        ]
        for row in rows
        for engine, found in row.values.items()
        if isinstance(found, dict) and "encode_ms" in found
    ]
    return ["method and engine", *keys, ON], lines


def of_clicks(rows: Iterable[Row], where: Where) -> Table:
    """Clicks needed, and mIoU after some."""
    header = [
        *("method", "encoder", "set", "NoC@80", "NoC@85", "NoC@90", "failures at 90"),
        *("mIoU after 1", "after 5", "after 20", "seconds a click", ON),
    ]
    lines = []
    for row in rows:
        values = row.values
        noc, failures = (_object(values.get(key)) for key in ("noc", "failures"))
        curve = values.get("curve")
        curve = curve if isinstance(curve, list) else []
        lines.append(
            [
                *(figure(values.get(key)) for key in ("method", "encoder", "set")),
                *(figure(noc.get(level)) for level in ("80", "85", "90")),
                figure(failures.get("90")),
                *(figure(curve[n - 1] if len(curve) >= n else None) for n in (1, 5, 20)),
                figure(values.get("seconds_per_click")),
                where(row.machine),
            ]
        )
    return header, lines


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def of_figures(rows: Iterable[Row], where: Where) -> list[Table]:
    """Tables of rows with the same keys, of which each file has its own.

    Text and counts say what a row is of; rows that differ by their split or seed alone are one, of
    means.
    """
    kinds: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row.machine.file, *_columns(row.values)), []).append(row)
    return [_of_one_kind(of_kind, where) for of_kind in kinds.values()]


def _columns(values: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that identify a row, and those of its figures."""
    plain = {key: one for key, one in values.items() if not isinstance(one, dict | list)}
    figures = tuple(
        key
        for key, one in plain.items()
        if isinstance(one, int | float) and key not in (*_IDENTITY, *_REPEATED)
    )
    return tuple(key for key in plain if key not in (*figures, *_REPEATED)), figures


def _of_one_kind(rows: Sequence[Row], where: Where) -> Table:
    identity, figures = _columns(rows[0].values)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        named = tuple(
            figure(short_name(row.values) if key == "benchmark" else row.values[key])
            for key in identity
        )
        groups.setdefault(named, []).append(row)
    repeated = any(len(group) > 1 for group in groups.values())
    lines = [
        [
            *named,
            *(figure(statistics.fmean(one.values[key] for one in group)) for key in figures),
            *([str(len(group))] if repeated else []),
            where(group[0].machine),
        ]
        for named, group in groups.items()
    ]
    return [*identity, *figures, *(["mean of"] if repeated else []), ON], lines


def of_runs(rows: Iterable[Row], where: Where) -> Table:
    """Training runs: where their curves ended."""
    runs: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        values = row.values
        key = (row.machine.file, str(values.get("run")), str(values.get("settings", "")))
        runs.setdefault(key, []).append(row)
    lines = []
    for (_, run, settings), members in runs.items():
        points = [row.values for row in members if "step" in row.values and "miou" in row.values]
        if not points:
            continue
        last = max(points, key=lambda one: one["step"])
        best = max(one["miou"] for one in points)
        cells = [last["step"], last["miou"], best, last.get("loss"), last.get("seconds")]
        lines.append([run, settings, *map(figure, cells), where(members[0].machine)])
    return ["run", "settings", "steps", "mIoU", "best mIoU", "loss", "seconds", ON], lines


def of_spreads(rows: Iterable[Row], where: Where) -> Table:
    """Times of many frames or clicks, stage by stage: their median, and what 5 % exceed."""
    lines = []
    for row in rows:
        name, place = figure(short_name(row.values)), where(row.machine)
        figures = dict(_flat(row.values))
        for key, median in figures.items():
            if key.endswith(_MEDIAN):
                stage = key.removesuffix(_MEDIAN)
                high = figures.get(f"{stage} p95_ms")
                lines.append([name, stage, figure(median), figure(high), place])
    return ["what", "time", "median, ms", "95th percentile, ms", ON], lines


def of_anything(rows: Iterable[Row], where: Where) -> Table:
    """What each row holds, key by key."""
    lines = []
    for row in rows:
        figures = ", ".join(
            f"{key} {figure(one)}" for key, one in _flat(row.values) if key != "benchmark"
        )
        lines.append([figure(short_name(row.values)), figures, where(row.machine)])
    return ["what", "figures", ON], lines


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, one in values.items():
        if isinstance(one, dict):
            yield from _flat(one, f"{before}{key} ")
        else:
            yield f"{before}{key}", one
