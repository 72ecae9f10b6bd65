"""An encoder on an NVIDIA GPU in CUDA graphs, one for each shape of images.

Launching an encoder's kernels one by one takes longer than running them on one image: MobileNetV2's
took 8.2 ms of a video's frame on an H200. A replay is one launch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from fastfss.encoders import Encoder
from fastfss.methods.graphed import Graphed

# A graph keeps the memory of all of an encoder's maps.
MOST_GRAPHS = 4
# Shapes that are remembered as seen once.
_MOST_SEEN = 64

V = TypeVar("V")
Key = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device, tuple[str, ...]]
Capture = Callable[[Callable[[Tensor], dict[str, Tensor]]], Callable[[Tensor], dict[str, Tensor]]]


def _graphed(function: Callable[[Tensor], dict[str, Tensor]]) -> Graphed:
    # cuDNN's choice by time would take seconds, within a video.
    return Graphed(function, fastest=False)


class EncoderReplays:
    """Maps of images whose shape came before; the second time that it comes, it is captured.

    Args:
        encoder: on a GPU when images come, without gradients. Its weights may change in place and
            move to another device, which begins anew.
        capture: makes a function's replay.
    """

    def __init__(self, encoder: Encoder, capture: Capture = _graphed) -> None:
        self._encoder = encoder
        self._capture = capture
        self._lock = Lock()
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._replays: OrderedDict[Key, Callable[[Tensor], dict[str, Tensor]]] = OrderedDict()
        self._held: list[Tensor] = []
        self._last: torch.cuda.Event | None = None

    def maps(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor] | None:
        """See `fastfss.encoders.base.MapEngine`: None for shapes that come for the first time."""
        if images.is_cuda and torch.cuda.is_current_stream_capturing():
            return None  # of a graph that holds more than the encoder
        key = (images.shape, images.stride(), images.dtype, images.device, names)
        with self._lock:
            self._forget_moved()
            if key not in self._replays:
                if key not in self._seen:
                    _keep(self._seen, key, None, _MOST_SEEN)
                    return None
                compute = lambda x: self._encoder._compute(x, frozenset(names))  # noqa: E731
                # So that nothing else comes to lie where graphs read the weights.
                self._held = [one.data for one in self._encoder.parameters()]
                _keep(self._replays, key, self._capture(compute), MOST_GRAPHS)
            self._replays.move_to_end(key)
            return self._replayed(self._replays[key], images)

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


def _keep(kept: OrderedDict[Key, V], key: Key, value: V, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)
