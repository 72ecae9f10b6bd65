"""What TensorRT says: errors are kept for exceptions, progress is passed on."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from fastfss.engines.tensorrt.library import Library
from fastfss.engines.tensorrt.options import Report

if TYPE_CHECKING:
    import tensorrt as trt

_KEPT = 20
_EVERY = 5.0  # seconds between two lines about a build


class Log:
    """The process's one logger of a library, and the last errors that it was told.

    TensorRT takes the first logger for all of its objects, so there is one and it lives on.
    """

    def __init__(self, library: Library) -> None:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = library.bindings()

        kept: deque[str] = deque(maxlen=_KEPT)

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    kept.append(msg)

        self._kept, self._title = kept, library.title
        self.logger: trt.ILogger = Logger()

    def taken(self) -> str:
        """The errors since they were last taken, in one line."""
        text = "; ".join(" ".join(one.split()) for one in self._kept)
        self._kept.clear()
        return text or f"{self._title} says no reason"


_LOGS: dict[str, Log] = {}


def the_log(library: Library) -> Log:
    """See Log."""
    if library.backend not in _LOGS:
        _LOGS[library.backend] = Log(library)
    return _LOGS[library.backend]


def progress_monitor(library: Library, report: Report) -> trt.IProgressMonitor:
    """A monitor that tells of the outermost phases, at most every few seconds."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.bindings()

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._told = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self._steps.get(phase_name)
            now = time.monotonic()
            if steps and now - self._told > _EVERY:
                self._told = now
                report(f"{phase_name}: {step + 1} of {steps}")
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
