"""The features of frames, so that none is encoded twice: the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import torch

from fastfss.errors import expected
from fastfss.methods import Features


class FeatureCache:
    """Features by key, up to so many bytes; pinned ones stay whatever comes.

    They are kept, and given out, in half precision.

    Args:
        max_bytes: of all that is not pinned.
        dtype: to keep them in.
    """

    def __init__(self, max_bytes: int, dtype: torch.dtype = torch.float16) -> None:
        if max_bytes < 0:
            raise expected("max_bytes", "a number of 0 or more", str(max_bytes))
        self.max_bytes = max_bytes
        self.dtype = dtype
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[Hashable, Features] = OrderedDict()
        self._pinned: set[Hashable] = set()
        self._bytes = 0

    def get(self, key: Hashable) -> Features | None:
        """The features of a key; None if they are not there."""
        kept = self._kept.get(key)
        if kept is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return kept

    def put(self, key: Hashable, features: Features) -> Features:
        """Keep features; as they are kept.

        So a result does not depend on whether a frame was in the cache.
        """
        kept = features.to(dtype=self.dtype)
        if (old := self._kept.pop(key, None)) is not None:
            self._bytes -= old.nbytes
        self._kept[key] = kept
        self._bytes += kept.nbytes
        self._shrink(key)
        return kept

    def pin(self, keys: set[Hashable]) -> None:
        """Keep these, and no longer those that were pinned before."""
        self._pinned = set(keys)
        self._shrink()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all features, the pinned ones included."""
        return self._bytes

    def clear(self) -> None:
        """Drop everything, pinned or not."""
        self._kept.clear()
        self._bytes = 0

    def _shrink(self, newest: Hashable | None = None) -> None:
        pinned = sum(self._kept[key].nbytes for key in self._pinned & self._kept.keys())
        for key in list(self._kept):
            if self._bytes - pinned <= self.max_bytes:
                return
            if key not in self._pinned and key != newest:
                self._bytes -= self._kept.pop(key).nbytes
