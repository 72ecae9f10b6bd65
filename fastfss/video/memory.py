"""What a session remembers of the frames that it segmented, within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from fastfss.errors import expected
from fastfss.video.matching import Reference, Seen
from fastfss.video.trail import Trail


@dataclass(frozen=True)
class MemoryConfig:
    """How much is remembered, beside supports and committed frames, which always are.

    Attributes:
        annotated: so many of the annotated frames, the nearest in time, are references.
        recent: so many of the last frames are matched nearby.
        confident: at most so many frames of which the masks were sure become references.
        every: frames between two of them.
        confidence: the least mean probability inside of the masks.
        prior: reach of the temporal prior, as a share of the shorter side: an object is looked for
            only so near where it was in the frame before; 0 looks everywhere.
    """

    annotated: int = 4
    recent: int = 1
    confident: int = 0
    every: int = 5
    confidence: float = 0.9
    prior: float = 0.07

    def __post_init__(self) -> None:
        if min(self.recent, self.confident) < 0 or min(self.annotated, self.every) < 1:
            came = f"{self.recent}, {self.confident}, {self.annotated}, {self.every}"
            wanted = "recent, confident of 0 or more, annotated, every of 1 or more"
            raise expected("memory", wanted, came)
        if not 0 <= self.confidence <= 1:
            raise expected("confidence", "0 to 1", str(self.confidence))
        if not 0 <= self.prior <= 1:
            raise expected("prior", "0 to 1", str(self.prior))


class Memory:
    """The last frames, and some before them, in the order they were seen."""

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self._recent: deque[Seen] = deque(maxlen=max(config.recent, 1))
        self._confident: deque[tuple[int, int, Reference]] = deque(maxlen=max(config.confident, 1))

    @property
    def recent(self) -> Sequence[Seen]:
        """The last frames."""
        return tuple(self._recent) if self.config.recent else ()

    @property
    def references(self) -> Sequence[Reference]:
        """The confident frames."""
        return tuple(made for *_, made in self._confident)

    @property
    def frames(self) -> tuple[int, ...]:
        """Numbers of the confident frames."""
        return tuple(number for number, *_ in self._confident)

    @property
    def last(self) -> int | None:
        """The frame that was seen last."""
        return self._recent[-1].frame if self._recent else None

    def see(self, seen: Seen) -> None:
        """A frame was segmented."""
        self._recent.append(seen)

    def wants(self, frame: int, confidence: float) -> bool:
        """Whether a frame is to become a confident one."""
        if not self.config.confident or confidence < self.config.confidence:
            return False
        return all(abs(frame - number) >= self.config.every for number in self.frames)

    def keep(self, frame: int, seq: int, reference: Reference) -> None:
        """Make it one, of its masks in a state; the oldest goes where there are too many."""
        self._confident.append((frame, seq, reference))

    def trail(self, seq: int, step: int) -> Trail:
        """What is needed to remember all of it again; see `fastfss.video.trail`."""
        recent = tuple((one.frame, one.objects, one.shares) for one in self._recent)
        confident = tuple((number, state) for number, state, _ in self._confident)
        return Trail(seq, step, recent, confident)

    def clear(self) -> None:
        """Forget all of it."""
        self._recent.clear()
        self._confident.clear()

    def leave(self) -> None:
        """Forget the last frames: the next one is not near them."""
        self._recent.clear()


def nearest(frames: Sequence[int], frame: int, count: int) -> list[int]:
    """So many frames, the nearest to one, in order."""
    return sorted(sorted(frames, key=lambda one: (abs(one - frame), one))[:count])
