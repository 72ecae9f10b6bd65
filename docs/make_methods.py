"""Fills in what docs/methods.md takes from the code and from measurements.

    python docs/make_methods.py [FILE]

Between `<!-- made: KIND NAME -->` and `<!-- end -->` stand, of a method or of a benchmark's file:

    scores   published figures, from `model_info(NAME).scores`
    parity   golden cases and their largest errors, from docs/parity.json
    speed    the newest row of each benchmark of bench/methods/test_NAME.py, from bench/results

docs/parity.json is written by `FASTFSS_PARITY_OUT=docs/parity.json pytest tests/parity -m ""`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fastfss import model_info
from fastfss.benchmarks import tables
from fastfss.benchmarks.rows import Row, read_results
from fastfss.methods.info import PublishedScore

DOCS = Path(__file__).parent
BLOCK = re.compile(r"<!-- made: (\w+) ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
SOURCES = {
    "repository": "the authors' repository",
    "listing": "a public listing",
    "paper": "the paper",
}


def filled(page: str) -> str:
    """The page with every block made anew."""

    def block(found: re.Match[str]) -> str:
        kind, name = found.groups()
        return f"<!-- made: {kind} {name} -->\n\n{KINDS[kind](name)}\n\n<!-- end -->"

    return BLOCK.sub(block, page)


def scores(name: str) -> str:
    """A table of the published figures, one row a setting."""
    published = model_info(name).scores
    header = ["data", "backbone", "ways", "shots", "metric", "folds 0 to 3", "mean", "printed in"]
    return tables.markdown((header, [_score(one) for one in published]))


def _score(one: PublishedScore) -> list[str]:
    folds = " ".join(map(str, one.folds)) or tables.NONE
    numbers = [str(one.ways), str(one.shots)]
    return [one.data, one.encoder, *numbers, one.metric, folds, str(one.mean), SOURCES[one.source]]


def parity(prefix: str) -> str:
    """What was compared with the reference implementation, and the largest error."""
    cases = [row for row in _parity() if row["case"].partition("_")[0] == prefix]
    worst = max(cases, key=lambda row: row["relative_error"])
    tensors = sum(row["compared"] for row in cases)
    return (
        f"{len(cases)} golden cases, {tensors} results and intermediates compared with the "
        f"reference implementation's; largest relative error {worst['relative_error']:.1e} "
        f"(`{worst['largest']}` of `{worst['case']}`)."
    )


def speed(stem: str) -> str:
    """Times, ratios and floors on one core, and at which commit they were measured."""
    newest: dict[str, Row] = {}
    for row in _rows():
        name = _name(row)
        known = newest.get(name)
        if f"methods/test_{stem}.py::" not in name:
            continue
        if known is None or row.machine.date >= known.machine.date:
            newest[name] = row
    if not newest:
        raise ValueError(f"bench/results: expected rows of bench/methods/test_{stem}.py, got none")
    return tables.markdown(
        tables.of_times(sorted(newest.values(), key=_name), lambda machine: machine.commit)
    )


def _name(row: Row) -> str:
    return str(row.values.get("benchmark", ""))


@cache
def _parity() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DOCS / "parity.json").read_text(encoding="utf-8"))
    return found


@cache
def _rows() -> list[Row]:
    return read_results(DOCS.parent / "bench" / "results")[0]


KINDS: dict[str, Callable[[str], str]] = {"scores": scores, "parity": parity, "speed": speed}


def main() -> None:
    """Fill in the page that is named, else docs/methods.md."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "methods.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
