"""What a run tells: a JSONL file, TensorBoard, and lines or a bar for who is watching."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TextIO, cast, get_args

from fastfss.atomic import write_text_atomically
from fastfss.errors import expected, import_extra

Progress = Literal["auto", "bar", "lines", "off"]


def checked_progress(text: str) -> Progress:
    """ValueError for a text that is no way of showing progress."""
    if text not in get_args(Progress):
        raise expected("progress", f"one of {', '.join(get_args(Progress))}", repr(text))
    return cast(Progress, text)


class Log:
    """The log of one run, written by its first process.

    Args:
        folder: log.jsonl and TensorBoard's files go there; None: nothing is written or said.
        steps: of the whole run.
        start: the step at which this process begins; what a killed process logged beyond it goes.
        tensorboard: whether to write for it.
        progress: "bar" needs rich; "auto" shows it on a terminal where there is rich, else lines.
    """

    def __init__(
        self, folder: Path | None, steps: int, start: int, *, tensorboard: bool, progress: Progress
    ) -> None:
        self.steps = steps
        self._file: TextIO | None = None
        self._writer: Any = None
        self._bar: Any = None
        self._lines = False
        if folder is None:
            return
        path = folder / "log.jsonl"
        if path.is_file():
            rows = path.read_text(encoding="utf-8").splitlines()
            kept = [row for row in rows if _step_of(row) <= start]
            write_text_atomically(path, "".join(f"{row}\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            import_extra("tensorboard", extra="train", purpose="log.tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        if progress == "auto":
            watched = sys.stderr.isatty() and find_spec("rich") is not None
            progress = "bar" if watched else "lines"
        self._lines = progress == "lines"
        if progress == "bar":
            rich = import_extra("rich.progress", extra="train", purpose="the progress bar")
            columns = (*rich.Progress.get_default_columns(), rich.TextColumn("{task.fields[note]}"))
            self._bar = rich.Progress(*columns)
            self._bar.start()
            self._task = self._bar.add_task("training", total=steps, completed=start, note="")

    def say(self, text: str) -> None:
        """A line for who is watching."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif self._lines:
            print(text, file=sys.stderr, flush=True)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """A row of the log.

        Args:
            kind: "run", "train" or "validation".
            step: steps done so far.
            values: what to log; numbers go to TensorBoard too.
        """
        if self._file is None:
            return
        row = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        numbers = {k: v for k, v in values.items() if isinstance(v, float | int)}
        if self._writer is not None and kind != "run":
            for key, value in numbers.items():
                self._writer.add_scalar(f"{kind}/{key}", value, step)
        if kind != "run":
            note = "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            if self._bar is not None:
                self._bar.update(self._task, completed=step, note=note)
            if self._lines or kind == "validation":
                self.say(f"step {step}/{self.steps}  {kind}: {note}")

    def close(self) -> None:
        """Flush and close everything."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()
        if self._bar is not None:
            self._bar.stop()


def _step_of(row: str) -> float:
    """The step of a row; rows that a kill cut off count as beyond all."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
