"""Shows each case's largest relative error at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.parity.golden import Report

_worst: dict[str, tuple[str, float]] = {}


@pytest.fixture
def record_parity() -> Callable[[str, Report], None]:
    def record(case: str, report: Report) -> None:
        _worst[case] = report.worst

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _worst:
        return
    terminalreporter.section("golden cases: largest relative error")
    for case, (name, error) in sorted(_worst.items()):
        terminalreporter.write_line(f"{error:.1e}  {case} ({name})")
