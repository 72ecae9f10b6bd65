"""Results that are made of a task's tensors, kept while those tensors live."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

# Entries that start with the same tensor: the same first way beside others, or with other options.
_LIMIT = 8

_Entry = tuple[list[TensorWeakRef], Hashable, Tensor]


class TensorMemo:
    """Tensors by the tensors and options that they were made of.

    Tensors are known by identity and, where torch counts changes in place, by that count; neither
    they nor the results are kept alive by more than the first of them. A copy is empty, and nothing
    is pickled.
    """

    def __init__(self) -> None:
        # Tensor -> a tuple of _Entry, the newest first.
        self._entries = WeakTensorKeyDictionary()

    def get(self, sources: Sequence[Tensor], options: Hashable) -> Tensor | None:
        """The result of exactly these, or None."""
        kept: tuple[_Entry, ...] = self._entries.get(sources[0], ())
        for refs, key, result in kept:
            same = len(refs) == len(sources) and key == (options, _versions(sources))
            if same and all(ref() is source for ref, source in zip(refs, sources, strict=True)):
                return result
        return None

    def put(self, sources: Sequence[Tensor], options: Hashable, result: Tensor) -> None:
        """Keep a result; the oldest of the same first tensor goes when there are too many."""
        entry = ([TensorWeakRef(s) for s in sources], (options, _versions(sources)), result)
        kept = self._entries.get(sources[0], ())
        self._entries[sources[0]] = (entry, *kept)[:_LIMIT]

    def __len__(self) -> int:
        """How many results are kept."""
        return sum(len(kept) for kept in self._entries.values())

    def __copy__(self) -> TensorMemo:
        return TensorMemo()

    def __deepcopy__(self, memo: object) -> TensorMemo:
        return TensorMemo()

    def __reduce__(self) -> tuple[type[TensorMemo], tuple[()]]:
        return TensorMemo, ()


def _versions(sources: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(-1 if source.is_inference() else source._version for source in sources)
