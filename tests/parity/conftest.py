"""Shows each case's largest relative error at the end of the run.

FASTFSS_PARITY_OUT names a JSON file to write them to as well: docs/parity.json, of which
docs/make_methods.py makes the tables of docs/methods.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity.golden import Report

_reports: dict[str, Report] = {}


@pytest.fixture
def record_parity() -> Callable[[str, Report], None]:
    def record(case: str, report: Report) -> None:
        _reports[case] = report

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _reports:
        return
    rows = []
    terminalreporter.section("golden cases: largest relative error")
    for case, report in sorted(_reports.items()):
        name, error = report.worst
        terminalreporter.write_line(f"{error:.1e}  {case} ({name})")
        row = {"case": case, "compared": len(report.errors), "largest": name}
        rows.append(row | {"relative_error": float(f"{error:.1e}")})
    if (out := os.environ.get("FASTFSS_PARITY_OUT")) is not None:
        lines = ",\n".join(json.dumps(row) for row in rows)
        Path(out).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
