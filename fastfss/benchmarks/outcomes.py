"""The outcome of tests, of pytest's `--junitxml`: which operations are red."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from fastfss.benchmarks.rows import LeftOut, Row
from fastfss.errors import expected


@dataclass(frozen=True)
class Outcome:
    """One test: its module's parts, the parts of its parameters, and whether it passed."""

    module: tuple[str, ...]
    parameters: tuple[str, ...]
    name: str
    failed: bool
    skipped: bool

    def is_of(self, subject: str) -> bool:
        """Whether it tests an operation or method, or lies in a folder that ends in a slash."""
        if subject.endswith("/"):
            return subject[:-1] in self.module[:-1]
        stem = self.module[-1].removeprefix("test_") if self.module else ""
        return stem == subject or stem.startswith(f"{subject}_") or subject in self.parameters


def read_outcomes(path: Path) -> list[Outcome]:
    """The tests of a file that `pytest --junitxml` wrote.

    Raises:
        ValueError: it is no such file, or holds no test.
        OSError: it cannot be read.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise expected("--tests", "a file of pytest --junitxml", f"'{path}' ({error})") from None
    found = [_outcome(case) for case in root.iter("testcase")]
    if not found:
        raise expected("--tests", "a file of pytest --junitxml with tests", f"'{path}' with none")
    return found


def _outcome(case: ElementTree.Element) -> Outcome:
    name, classname = case.get("name", ""), case.get("classname", "")
    # A module that could not be collected is a case whose name is the module's.
    module = [part for part in (classname or name).split(".") if part]
    last = max((n for n, part in enumerate(module) if part.startswith("test_")), default=-1)
    inside = re.search(r"\[(.*)\]$", name)
    parameters = re.split(r"[-,:\s\[\]]+", inside.group(1)) if inside else []
    joined = "_".join(parameters)
    return Outcome(
        tuple(module[: last + 1] if last >= 0 else module),
        tuple(sorted({*parameters, joined})),
        f"{classname}::{name}",
        any(case.find(kind) is not None for kind in ("failure", "error")),
        case.find("skipped") is not None,
    )


def refuse_red(
    rows: Sequence[Row], outcomes: Sequence[Outcome]
) -> tuple[list[Row], list[LeftOut], list[str]]:
    """Leave out the rows of what has a failed test.

    Args:
        rows: of `read_results`.
        outcomes: of `read_outcomes`.

    Returns:
        The rows that stay; those refused, with the tests that failed; and what of the rows that
        stay no test in the file ran of.
    """
    subjects = sorted({subject for row in rows for subject in row.subjects})
    failed = {s: [o.name for o in outcomes if o.failed and o.is_of(s)] for s in subjects}
    ran = {s for s in subjects if any(o.is_of(s) and not o.skipped for o in outcomes)}
    stay: list[Row] = []
    refused: list[LeftOut] = []
    for row in rows:
        red = {s: failed[s] for s in row.subjects if failed[s]}
        if not red:
            stay.append(row)
            continue
        why = "; ".join(f"{s}: {_some(names)}" for s, names in red.items())
        refused.append(LeftOut(f"{row.place} ({title(row)})", f"tests are red, {why}"))
    untested = sorted({s for row in stay for s in row.subjects if s not in ran})
    return stay, refused, untested


def title(row: Row) -> str:
    """What a row is of, in a few words."""
    keys = ("benchmark", "case", "method", "model", "variant", "run", "bench")
    named = next((str(row.values[key]) for key in keys if key in row.values), row.area)
    return " ".join(filter(None, [named, str(row.values.get("dtype", ""))]))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
