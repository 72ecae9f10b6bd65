"""Times of rows: of the published form, of ours, their ratio, and the floor under ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastfss.benchmarks.rows import Row

# Times that are neither ours nor an engine's: what ours is compared with, and the machine's limits.
_YARDSTICKS = ("published", "plain", "multiply-adds", "floor")
_SUFFIX = "_ms"


@dataclass(frozen=True)
class Timing:
    """A time beside what it is compared with, in milliseconds.

    Attributes:
        row: where it is from.
        form: "ours", or which of several.
        ours, published, ratio: the times, and how many times longer the published form takes.
        floor: what the machine needs at least: to read the inputs once, or for the products.
    """

    row: Row
    form: str
    ours: float
    published: float | None
    ratio: float | None
    floor: float | None

    @property
    def percent_of_floor(self) -> float | None:
        """The floor's share of the time: 100 is as fast as this machine can be."""
        return None if self.floor is None else 100 * self.floor / self.ours

    @property
    def what(self) -> str:
        """The benchmark, and the form where it is one of several."""
        name = short_name(self.row.values)
        return name if self.form == "ours" else f"{name}, {self.form}"


def timings(row: Row) -> list[Timing]:
    """The times of a row: one a form; none where it is a row of something else."""
    values = row.values
    if "ours_us" in values:
        return [_on_gpu(row)]
    times = {
        key.removesuffix(_SUFFIX): float(value)
        for key, value in values.items()
        if key.endswith(_SUFFIX) and isinstance(value, int | float) and value > 0
    }
    published = next((time for name, time in times.items() if name.startswith("published")), None)
    return [
        Timing(
            row,
            name,
            time,
            published,
            _ratio(values, name, time, published),
            _floor(values, name, times),
        )
        for name, time in times.items()
        if not name.startswith(_YARDSTICKS)
    ]


def _floor(values: Mapping[str, Any], name: str, times: Mapping[str, float]) -> float | None:
    """The form's own, else that of all forms of ours."""
    if not name.startswith("ours"):
        return None
    read = times.get("plain read") if "of_read" in values else None
    return times.get(f"floor of {name}", times.get("floor", read))


def _ratio(
    values: Mapping[str, Any], name: str, time: float, published: float | None
) -> float | None:
    """As measured round by round where the row has it; else of the two medians."""
    names = ("ratio",) if name == "ours" else (f"ratio of {name}", f"{name}_ratio")
    found = next((values[one] for one in names if isinstance(values.get(one), int | float)), None)
    if found is not None:
        return float(found)
    return None if published is None else published / time


def _on_gpu(row: Row) -> Timing:
    values = row.values
    published = values.get("published_us", values.get("published_float32_us"))
    floor = values.get("floor_us")
    return Timing(
        row,
        "ours",
        values["ours_us"] / 1e3,
        None if published is None else published / 1e3,
        values.get("published/ours"),
        None if floor is None else floor / 1e3,
    )


def short_name(values: Mapping[str, Any]) -> str:
    """A benchmark's name without folders: `dense_match: pfenet prior [float32]`."""
    if "case" in values:
        return f"{values['case']} [{values.get('dtype', '')}]"
    name = str(values.get("benchmark", values.get("bench", "")))
    found = re.match(r"(?:.*/)?test_(\w+)\.py::test_(\w+)(?:\[(.*)\])?$", name)
    if found is None:
        return name
    stem, function, inside = found.groups()
    inside = "" if inside is None else f" [{inside.replace('torch.', '')}]"
    return f"{stem}: {function.replace('_', ' ')}{inside}"
