"""Plots of rows as SVG: speed-up bars, accuracy against latency, memory against shots."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastfss.benchmarks.rows import Area, Row
from fastfss.benchmarks.tables import figure
from fastfss.benchmarks.timings import timings
from fastfss.errors import import_extra

# Plots of speed-ups, an area each.
SPEED_UPS: dict[Area, tuple[str, str]] = {
    "operations-cpu": ("speed-up-operations-cpu.svg", "Operations on a CPU"),
    "operations-gpu": ("speed-up-operations-gpu.svg", "Operations on a GPU"),
    "methods": ("speed-up-methods.svg", "Methods on a CPU"),
    "methods-gpu": ("speed-up-methods-gpu.svg", "Methods on a GPU"),
}
ACCURACY, MEMORY = "accuracy-against-latency.svg", "memory-against-shots.svg"
# All that the command may have written before.
NAMES = (*(name for name, _ in SPEED_UPS.values()), ACCURACY, MEMORY)

# Text stays text, which is small and searched; the salt makes identifiers the same in every run.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastfss",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}
_LONGEST = 70


def draw(rows: Sequence[Row]) -> dict[str, bytes]:
    """The plots that the rows allow: file name -> SVG, the same bytes for the same rows.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    import_extra("matplotlib", extra="bench", purpose="fastfss bench report")
    found = {
        name: _speed_ups([row for row in rows if row.area == area], title)
        for area, (name, title) in SPEED_UPS.items()
    }
    found[ACCURACY] = _accuracy(rows)
    found[MEMORY] = _memory([row for row in rows if row.area == "scaling"])
    return {name: svg for name, svg in found.items() if svg is not None}


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """Axes, and what turns them into SVG."""
    # Not pyplot: it keeps figures, and may look for a display.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        canvas = FigureCanvasSVG(Figure(figsize=(width, height), layout="constrained"))

        def svg() -> bytes:
            written = io.BytesIO()
            canvas.figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
            return written.getvalue()

        yield canvas.figure.add_subplot(), svg


def _speed_ups(rows: Iterable[Row], title: str) -> bytes | None:
    bars = [
        (one.what, one.ratio, one.row.machine.commit)
        for row in rows
        for one in timings(row)
        if one.ratio is not None and one.ratio > 0
    ]
    if not bars:
        return None
    commits = sorted({commit for *_, commit in bars})
    with _figure(9, 1 + 0.22 * len(bars)) as (axes, svg):
        places = range(len(bars))
        colours = [f"C{commits.index(commit) % 10}" for *_, commit in bars]
        axes.barh(places, [ratio for _, ratio, _ in bars], color=colours)
        axes.set_yticks(places, [_shortened(what) for what, *_ in bars])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.margins(x=0.15, y=0.5 / len(bars))
        for place, (_, ratio, _) in zip(places, bars, strict=True):
            axes.annotate(
                f"{figure(ratio)}x",
                (max(ratio, 1), place),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_xlabel("published time / ours")
        axes.set_title(f"{title}, at {', '.join(commits)}", fontsize=10)
        return svg()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _accuracy(rows: Iterable[Row]) -> bytes | None:
    """Rows that hold both: figures of different runs would not belong together."""
    points = []
    for row in rows:
        miou, latency = row.values.get("miou"), row.values.get("query_ms")
        if isinstance(miou, int | float) and isinstance(latency, int | float):
            named = [str(row.values.get("method", row.values.get("model", "")))]
            if "shots" in row.values:
                named.append(f"{row.values['shots']}-shot")
            points.append((", ".join(named), float(latency), float(miou), row.machine.commit))
    if not points:
        return None
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    with _figure(7, 4) as (axes, svg):
        for number, (name, latency, miou, _) in enumerate(points):
            axes.scatter([latency], [miou], color=f"C{number % 10}", label=name)
        axes.margins(0.15)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("ms a query, support fitted")
        axes.set_ylabel("mIoU, %")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        commits = ", ".join(sorted({commit for *_, commit in points}))
        axes.set_title(f"Accuracy against latency, at {commits}", fontsize=10)
        return svg()


def _memory(rows: Iterable[Row]) -> bytes | None:
    lines: dict[str, list[tuple[float, float]]] = {}
    commits = set()
    for row in rows:
        shots = row.values.get("shots")
        if not isinstance(shots, int | float):
            continue
        for key, value in row.values.items():
            if key.endswith("_mib") and isinstance(value, int | float):
                name = f"{row.values.get('method', '')}: {key[:-4].replace('_', ' ')}"
                lines.setdefault(name, []).append((shots, value))
                commits.add(row.machine.commit)
    if not lines:
        return None
    with _figure(7, 4.5) as (axes, svg):
        for name, points in lines.items():
            found = sorted(points)
            axes.plot([x for x, _ in found], [y for _, y in found], marker="o", label=name)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1)
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("shots")
        axes.set_ylabel("MiB")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.set_title(f"Memory against shots, at {', '.join(sorted(commits))}", fontsize=10)
        return svg()
