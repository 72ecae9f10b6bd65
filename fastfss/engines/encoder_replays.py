"""An encoder on an NVIDIA GPU in CUDA graphs, one for each shape of images.

Launching an encoder's kernels one by one takes longer than running them on one image: MobileNetV2
took 6.0 to 7.4 ms of a video's frame on an H200, and 1.5 to 1.9 replayed, which is one launch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from fastfss.encoders import Encoder
from fastfss.methods.graphed import Graphed

# A graph keeps the memory of all of an encoder's maps.
MOST_GRAPHS = 4
# Calls after which a graph that none of them used makes room for another one. Shapes that take
# turns would else be captured again and again.
_UNUSED = 64
# Shapes that are remembered as seen once.
_MOST_SEEN = 64

Key = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device, tuple[str, ...]]
Capture = Callable[[Callable[[Tensor], dict[str, Tensor]]], Callable[[Tensor], dict[str, Tensor]]]


def _graphed(function: Callable[[Tensor], dict[str, Tensor]]) -> Graphed:
    # cuDNN's choice by time would take seconds, within a video.
    return Graphed(function, fastest=False)


@dataclass
class _Replay:
    """A graph, and the call that used it last."""

    run: Callable[[Tensor], dict[str, Tensor]]
    used: int = 0


class EncoderReplays:
    """Maps of images whose shape came before; the second time that it comes, it is captured.

    Args:
        encoder: on a GPU when images come, without gradients. Its weights may change in place and
            move to another device, which begins anew.
        capture: makes a function's replay.

    Attributes:
        why_not: what came of the last capture that failed; shapes are not captured again then.
    """

    def __init__(self, encoder: Encoder, capture: Capture = _graphed) -> None:
        self.why_not: str | None = None
        self._encoder = encoder
        self._capture = capture
        self._lock = Lock()
        self._calls = 0
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._replays: dict[Key, _Replay] = {}
        self._held: list[Tensor] = []
        self._last: torch.cuda.Event | None = None

    def maps(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor] | None:
        """See `fastfss.encoders.base.MapEngine`: None for shapes that have no graph."""
        if images.is_cuda and torch.cuda.is_current_stream_capturing():
            return None  # of a graph that holds more than the encoder
        key = (images.shape, images.stride(), images.dtype, images.device, names)
        with self._lock:
            self._calls += 1
            self._forget_moved()
            replay = self._replays.get(key)
            if replay is None and self._is_due(key):
                replay = self._captured(key, images)
            if replay is None:
                return None
            replay.used = self._calls
            return self._replayed(replay.run, images)

    def _is_due(self, key: Key) -> bool:
        """Whether a shape came before and finds room, which one in use does not make."""
        if self.why_not is not None:
            return False
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
            return False
        if len(self._replays) < MOST_GRAPHS:
            return True
        oldest = min(self._replays, key=lambda one: self._replays[one].used)
        if self._calls - self._replays[oldest].used < _UNUSED:
            return False
        del self._replays[oldest]
        return True

    def _captured(self, key: Key, images: Tensor) -> _Replay | None:
        compute = lambda x: self._encoder._compute(x, frozenset(key[-1]))  # noqa: E731
        # So that nothing else comes to lie where graphs read the weights.
        self._held = [one.data for one in self._encoder.parameters()]
        made = _Replay(self._capture(compute))
        try:
            made.run(images)
        except RuntimeError as error:  # an encoder of another library may wait for the GPU
            self.why_not = f"cannot be captured: {' '.join(str(error).split())[:200]}"
            return None
        self._replays[key] = made
        return made

    def _replayed(
        self, replay: Callable[[Tensor], dict[str, Tensor]], images: Tensor
    ) -> dict[str, Tensor]:
        """Copies of the maps; another stream's call waits until this one's are made."""
        if images.is_cuda and self._last is not None:
            torch.cuda.current_stream(images.device).wait_event(self._last)
        maps = {name: one.clone() for name, one in replay(images).items()}
        if images.is_cuda:
            self._last = torch.cuda.Event()
            self._last.record(torch.cuda.current_stream(images.device))
        return maps

    def _forget_moved(self) -> None:
        """Drop the graphs of weights that have moved to another device or another precision."""
        if self._held and next(self._encoder.parameters()).data_ptr() != self._held[0].data_ptr():
            self._replays.clear()
            self._held = []
