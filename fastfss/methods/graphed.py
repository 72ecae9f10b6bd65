"""A query path captured in one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastfss.errors import expected
from fastfss.methods.prediction import Prediction
from fastfss.task import Task

if TYPE_CHECKING:
    from fastfss.methods.base import FewShotSegmenter


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
        self._tasks = [one.to(model.device) for one in tasks]
        dtype = next(model.encoder.parameters()).dtype
        self._query = torch.zeros(*shape, dtype=dtype, device=model.device)
        # Warmed up beside the graph: kernels compile and libraries choose at their first calls.
        side = torch.cuda.Stream(model.device)
        side.wait_stream(torch.cuda.current_stream(model.device))
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):
                model.segment(self._query, self._tasks, output_size)
        torch.cuda.current_stream(model.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(model.device), torch.no_grad(), torch.cuda.graph(self._graph):
            self._prediction = model.segment(self._query, self._tasks, output_size)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, 3, H, W) of the queries."""
        return tuple(self._query.shape)

    def __call__(self, query: Tensor) -> Prediction:
        """Segment queries.

        Args:
            query: of the shape; normalised as `encoder.normalization` says, on any device.

        Returns:
            The prediction, in memory that the next call overwrites: copy what must last.

        Raises:
            ValueError: if the query has another shape.
        """
        if query.shape != self._query.shape:
            raise expected("query", str(self.shape), str(tuple(query.shape)))
        self._query.copy_(query, non_blocking=True)
        self._graph.replay()
        return self._prediction
