"""The two graphs of a method as modules: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastfss.engines.base import LOGITS, PRESENCE, task_input
from fastfss.engines.manifest import Manifest
from fastfss.methods import Features, FewShotSegmenter, Prediction
from fastfss.task import Task


class EncodeGraph(nn.Module):
    """images (1, 3, H, W) float32 -> the method's maps, float32, in the order of `names`.

    Args:
        model: for inference; in a lower precision the casts are part of the graph.
        names: of the maps.
    """

    def __init__(self, model: FewShotSegmenter, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.dtype = next(model.encoder.parameters()).dtype

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode."""
        maps = self.model.encode(images.to(self.dtype)).maps
        return tuple(maps[name].to(images.dtype) for name in self.names)


class MatchGraph(nn.Module):
    """Maps and each way's tensors -> logits (1, N + 1, h, w), and presence (1, N) if it is said.

    Args:
        model: for inference, float32.
        maps: the maps' names.
        tensors: the names of a task's tensors.
        ways: how many tasks.
        on_grid: whether the logits are made on the method's own grid.
        size: height and width of the images, where they are fixed; else `images` says how a map's
            sides become theirs.
    """

    def __init__(
        self,
        model: FewShotSegmenter,
        maps: Sequence[str],
        tensors: Sequence[str],
        ways: int,
        size: tuple[int, int],
        *,
        on_grid: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.map_names = tuple(maps)
        self.tensor_names = tuple(tensors)
        self.ways = ways
        self.size = size
        self.on_grid = on_grid

    @property
    def input_names(self) -> list[str]:
        """Of `forward`'s arguments."""
        ways = range(1, self.ways + 1)
        of_tasks = [task_input(way, name) for way in ways for name in self.tensor_names]
        return [*self.map_names, *of_tasks]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Match."""
        count = len(self.map_names)
        features = Features(dict(zip(self.map_names, inputs, strict=False)), self.size)
        each = len(self.tensor_names)
        tasks = [
            Task(
                self.model.method,
                dict(zip(self.tensor_names, inputs[start : start + each], strict=True)),
            )
            for start in range(count, len(inputs), each)
        ]
        found = self.model.grid_prediction(features, tasks) if self.on_grid else None
        return tuple(outputs_of(found or self.model.segment_from(features, tasks)).values())


def outputs_of(prediction: Prediction) -> dict[str, Tensor]:
    """What the match graph gives of a prediction, by name."""
    logits = {LOGITS: prediction.logits}
    return logits if prediction.presence is None else {**logits, PRESENCE: prediction.presence}


def graphs_of(model: FewShotSegmenter, manifest: Manifest) -> tuple[EncodeGraph, MatchGraph]:
    """The graphs of a folder's model, as they were exported."""
    names = [spec.name for spec in manifest.maps]
    fast = model.for_inference()
    # Of free sides the size only decides what is not on the grid, and then it is not free.
    size = (0, 0) if manifest.dynamic else manifest.fixed_size()
    encode = EncodeGraph(fast, names)
    match = MatchGraph(
        fast,
        names,
        [spec.name for spec in manifest.task],
        manifest.ways,
        size,
        on_grid=manifest.output.on_grid,
    )
    return encode.eval(), match.eval()
