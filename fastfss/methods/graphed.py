"""Functions of tensors, and a query path, captured in one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastfss.errors import expected
from fastfss.methods.prediction import Prediction
from fastfss.task import Task

if TYPE_CHECKING:
    from fastfss.methods.base import FewShotSegmenter


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """cuDNN chooses by time: a graph runs its choice many times, at the shapes it is made for."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Graphed:
    """A function of tensors, captured at its first call and then replayed.

    Results are in memory that the next call overwrites: copy what must last.

    Args:
        function: of tensors on an NVIDIA GPU; captured without gradients.
        fastest: whether cuDNN times its convolutions first, which takes seconds.
    """

    def __init__(self, function: Callable[..., Any], *, fastest: bool = True) -> None:
        self._function = function
        self._choice = _fastest_convolutions if fastest else nullcontext
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's result for inputs of the first call's shapes and dtypes."""
        if self._graph is None:
            self._capture(inputs)
        for held, given in zip(self._inputs, inputs, strict=True):
            if held.shape != given.shape:
                raise expected("inputs", str(tuple(held.shape)), str(tuple(given.shape)))
            held.copy_(given, non_blocking=True)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    @torch.inference_mode(False)
    @torch.no_grad()
    def _capture(self, inputs: Sequence[Tensor]) -> None:
        device = inputs[0].device
        self._inputs = [one.clone() for one in inputs]
        # Warmed up beside the graph: kernels compile and libraries choose at their first calls.
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side), self._choice():
            for _ in range(3):
                self._function(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads' allocations are no error.
        capturing = torch.cuda.graph(graph, capture_error_mode="thread_local")
        with torch.cuda.device(device), capturing, self._choice():
            self._result = self._function(*self._inputs)
        self._graph = graph


class GraphedQuery:
    """`segment` for queries of one shape and fixed tasks, replayed instead of launched.

    At batch 1 launching its kernels one by one takes longer than running them: a replay is one
    launch. The weights and the tasks are read where they lie, so that changing them in place
    changes the result; a task of other shots needs a new graph.
    """

    def __init__(
        self,
        model: FewShotSegmenter,
        task: Task | Sequence[Task],
        shape: Sequence[int],
        output_size: tuple[int, int] | None,
    ) -> None:
        if model.device.type != "cuda":
            raise expected("model", "a model on an NVIDIA GPU: model.cuda()", str(model.device))
        if len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
            raise expected("shape", "(B, 3, H, W)", str(tuple(shape)))
        tasks = [task] if isinstance(task, Task) else list(task)
        held = [one.to(model.device) for one in tasks]
        dtype = next(model.encoder.parameters()).dtype
        self._shape = tuple(shape)
        self._graph = Graphed(lambda query: model.segment(query, held, output_size))
        self._graph(torch.zeros(*shape, dtype=dtype, device=model.device))

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, 3, H, W) of the queries."""
        return self._shape

    def __call__(self, query: Tensor) -> Prediction:
        """Segment queries.

        Args:
            query: of the shape; normalised as `encoder.normalization` says, on any device.

        Returns:
            The prediction, in memory that the next call overwrites: copy what must last.

        Raises:
            ValueError: if the query has another shape.
        """
        if query.shape != self.shape:
            raise expected("query", str(self.shape), str(tuple(query.shape)))
        prediction: Prediction = self._graph(query)
        return prediction
