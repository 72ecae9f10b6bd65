"""Work that does not depend on what follows it, side by side in a CUDA graph."""

from __future__ import annotations

from types import TracebackType

import torch


class Branch:
    """While a CUDA graph is captured: what is done within runs beside what follows, until `join`.

    A small kernel fills a few of the GPU's multiprocessors, and others can have the rest. Launched
    one by one they would not meet, so that elsewhere, and on a CPU, all is done in its turn.

    Hold what the branch reads until `join`: freed before, it would be given to what runs beside it.
    What the branch makes may be freed anywhere after `join`; it comes back to a later branch alone,
    which waits for all before it.

    Args:
        device: where the work is done.

    Examples:
        with (branch := Branch(x.device)):
            y = f(x)
        z = g(x)
        branch.join()  # before y is used
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._before: torch.cuda.Stream | None = None
        # Tensors without values may be on a GPU that is not there.
        there = device.type == "cuda" and torch.cuda.is_initialized()
        if there and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
            self._stream = torch.cuda.Stream(device)

    def __enter__(self) -> Branch:
        if self._stream is not None:
            self._before = torch.cuda.current_stream(self._stream.device)
            self._stream.wait_stream(self._before)
            torch.cuda.set_stream(self._stream)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            torch.cuda.set_stream(self._before)

    def join(self) -> None:
        """Have what follows wait for the branch."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
