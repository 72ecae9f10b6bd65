"""The page: tables by area, plots, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from fastfss.benchmarks import plots, tables
from fastfss.benchmarks.outcomes import Outcome
from fastfss.benchmarks.rows import Area, LeftOut, Machine, Row
from fastfss.benchmarks.tables import Table, Where
from fastfss.benchmarks.timings import timings

_TITLES: dict[Area, tuple[str, str]] = {
    "operations-cpu": (
        "Operations on a CPU",
        "The floor is one read of the inputs, or the products' multiply-adds at the rate that this "
        "machine reached in the same run; rows without one have none that was measured.",
    ),
    "operations-gpu": (
        "Operations on a GPU",
        "The ratio is of calls, published against ours; the floor belongs to the time in a CUDA "
        "graph, the GPU's work alone, and is the larger of the bytes at the rate of a copy and the "
        "products at that of a large product, both of the same run. Gradients, which no "
        "graph holds, are timed one by one in both columns.",
    ),
    "methods": (
        "Methods",
        "A query end to end and heads alone, against the published forward. The floor is that of "
        "what ours computes: the multiply-adds of its convolutions and products (bench/flop.py) at "
        "the rate reached in registers, or one read of the features where that takes longer.",
    ),
    "methods-gpu": (
        "Methods on a GPU",
        "The published forward takes one query; the ratio is of as many queries as ours has in a "
        "batch.",
    ),
    "engines": ("Engines", "Ratios are against the published forward in PyTorch."),
    "scaling": (
        "Shots and ways",
        "Times in milliseconds; memory in MiB, the task's own and the peak above the model's.",
    ),
    "video": (
        "Video",
        "Label propagation, CPU time: frames of 854 x 480 at two sizes, clicks, and a cached clip "
        "after an edit.",
    ),
    "clicks": ("Clicks", "Clicks that a simulated annotator needs (NoC), and mIoU after some."),
    "accuracy": (
        "Accuracy",
        "In percent. Rows that differ by their split or seed alone are shown as one, of means.",
    ),
    "training": ("Training", ""),
    "other": ("Other measurements", ""),
}
_HOW = (
    "`pytest bench --benchmark-only` measures all that needs no GPU, one after the other: eighty "
    "minutes of an idle core. bench/methods takes 50 of them, because a published forward takes up "
    "to 33 seconds a call (PPNet's of five shots); no row takes more than three and a half "
    "minutes. `pytest bench/FOLDER --benchmark-only` measures a part, "
    "`--benchmark-json FILE` keeps the rows, `-s` shows them."
)
_NO_PLOT = {
    plots.ACCURACY: "No row holds both accuracy (miou) and latency (query_ms): no plot of them.",
    plots.MEMORY: "No row holds both shots and memory: no plot of them.",
}


@dataclass(frozen=True)
class Tests:
    """What is known of the tests.

    Attributes:
        file: the name of the file of outcomes.
        outcomes: the tests.
        untested: operations of shown rows of which no test ran.
    """

    file: str
    outcomes: Sequence[Outcome]
    untested: Sequence[str]

    def __str__(self) -> str:
        failed = sum(one.failed for one in self.outcomes)
        told = f"Tests: {len(self.outcomes)} in {self.file}, {failed} failed."
        if self.untested:
            told += f" None of them is of {', '.join(self.untested)}."
        return told


def render(
    rows: Sequence[Row],
    *,
    drawn: Collection[str],
    folder: str,
    tests: Tests | None,
    refused: Sequence[LeftOut],
    left_out: Sequence[LeftOut],
) -> str:
    """The page in Markdown.

    Args:
        rows: what is shown.
        drawn: the plots that were made.
        folder: where they lie, seen from the page.
        tests: the tests' state; None if it was not checked.
        refused: rows whose tests are red.
        left_out: files and rows that could not be used.
    """
    machines = list(dict.fromkeys(row.machine for row in rows))

    def where(machine: Machine) -> str:
        return f"[{machines.index(machine) + 1}], {machine.commit}"

    parts = [
        "# Benchmarks",
        "Made by `fastfss bench report` of the files in bench/results. A ratio is the published "
        "formulation's time by ours, percent of floor the least time this machine needs by ours; "
        f"{tables.NONE}: not measured.",
        _HOW,
        str(tests) if tests else "The tests' state was not checked (`--tests junit.xml` does).",
        *_listed("Refused, because their tests are red:", refused),
        "## Machines",
        tables.markdown(_of_machines(machines)),
    ]
    for area, (title, about) in _TITLES.items():
        members = [row for row in rows if row.area == area]
        if not members:
            continue
        parts += [f"## {title}", *([about] if about else [])]
        parts += _plots_of(area, drawn, folder)
        parts += [tables.markdown(table) for table in _tables(area, members, where) if table[1]]
    parts += _listed("## Left out", left_out)
    return "\n\n".join(parts) + "\n"


def usable(rows: Sequence[Row]) -> tuple[list[Row], list[LeftOut]]:
    """The rows that a table can show, and those whose values are of a kind that none expects."""
    stay: list[Row] = []
    left_out: list[LeftOut] = []
    for row in rows:
        try:
            _tables(row.area, [row], lambda machine: machine.commit)
            for one in timings(row):
                float(one.ratio or 0)
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            left_out.append(LeftOut(row.place, f"its values cannot be shown ({error})"))
        else:
            stay.append(row)
    return stay, left_out


def _of_machines(machines: Sequence[Machine]) -> Table:
    lines = [
        [f"[{number}]", *map(tables.figure, (m.hardware, m.commit, m.torch, m.date)), m.file]
        for number, m in enumerate(machines, start=1)
    ]
    return ["", "machine", "commit", "torch", "date", "file"], lines


def _listed(title: str, found: Sequence[LeftOut]) -> list[str]:
    return [title, "\n".join(f"- {one}" for one in found)] if found else []


def _plots_of(area: Area, drawn: Collection[str], folder: str) -> list[str]:
    names = {"accuracy": [plots.ACCURACY], "scaling": [plots.MEMORY]}.get(area, [])
    if area in plots.SPEED_UPS:
        names = [plots.SPEED_UPS[area][0]]
    return [
        f"![{name[:-4].replace('-', ' ')}]({folder}/{name})" if name in drawn else _NO_PLOT[name]
        for name in names
        if name in drawn or name in _NO_PLOT
    ]


def _tables(area: Area, rows: Sequence[Row], where: Where) -> list[Table]:
    """The tables of an area; a row is in every one that shows something of it, and in one."""
    if area == "operations-gpu":
        return [tables.of_gpu_operations(rows, where)]
    if area == "methods-gpu":
        return [tables.of_gpu_methods(rows, where)]
    if area == "clicks":
        return _split(rows, where, lambda row: "noc" in row.values, tables.of_clicks)
    if area in ("accuracy", "scaling"):
        return tables.of_figures(rows, where)
    if area == "training":
        runs = [row for row in rows if "run" in row.values]
        others = [row for row in rows if "run" not in row.values]
        return [tables.of_runs(runs, where), *tables.of_figures(others, where)]
    if area == "engines":
        return _split(rows, where, _has_engines, tables.of_engines)
    if area == "video":
        return _split(rows, where, _nested, tables.of_spreads)
    if area == "methods":  # of several files
        rows = sorted(rows, key=lambda row: str(row.values.get("benchmark")))
    return _split(rows, where, lambda row: "ours_mib" in row.values, tables.of_memory)


def _has_engines(row: Row) -> bool:
    return any(isinstance(one, dict) and "encode_ms" in one for one in row.values.values())


def _split(
    rows: Sequence[Row],
    where: Where,
    special: Callable[[Row], bool],
    table: Callable[[Sequence[Row], Where], Table],
) -> list[Table]:
    """Times, the area's own kind, and the rest key by key."""
    own = [row for row in rows if special(row)]
    others = [row for row in rows if not special(row)]
    timed = [row for row in others if timings(row) and not _nested(row)]
    rest = [row for row in others if row not in timed]
    return [tables.of_times(timed, where), table(own, where), tables.of_anything(rest, where)]


def _nested(row: Row) -> bool:
    return any(isinstance(one, dict) for one in row.values.values())
