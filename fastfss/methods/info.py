"""What is known about a method beside its code: the paper, the published set-up and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Support = Literal["mask", "box", "scribble", "point", "label", "unlabelled images"]
Source = Literal["repository", "listing", "paper"]


@dataclass(frozen=True)
class PublishedScore:
    """One published figure.

    Attributes:
        data: the data set, "PASCAL-5i".
        encoder: the backbone as the paper calls it, "ResNet-50".
        ways, shots: of the episodes.
        mean: over the folds, in percent.
        folds: the folds' figures, where published.
        metric: "mIoU" or "FB-IoU".
        source: "repository" (printed by the authors' repository), "listing" (confirmed in a public
            listing) or "paper" (read in the paper).
    """

    data: str
    encoder: str
    shots: int
    mean: float
    folds: tuple[float, ...] = ()
    ways: int = 1
    metric: str = "mIoU"
    source: Source = "repository"

    def __str__(self) -> str:
        folds = f"{' '.join(f'{fold:.1f}' for fold in self.folds)} = " if self.folds else ""
        setting = f"{self.ways}-way {self.shots}-shot"
        return f"{self.data} {self.encoder} {setting}: {folds}{self.mean:.1f} {self.metric}"


@dataclass(frozen=True)
class MethodInfo:
    """A method's card, shown by `fastfss models`.

    Attributes:
        title: what the authors call it.
        paper: authors and title.
        venue: "ECCV 2022".
        arxiv: its number there, "2207.11549"; empty where there is none.
        encoders: the published backbones by their names in `list_encoders()`; the first is the
            default.
        supports: kinds of annotation that a support image can have as published.
        weights_licence: under which licence the authors offer their weights.
        parity: what is proven about the equality with the reference implementation.
        scores: published figures; they are the authors', not this package's.
    """

    title: str
    paper: str
    venue: str
    arxiv: str
    encoders: tuple[str, ...]
    parity: str
    supports: tuple[Support, ...] = ("mask",)
    weights_licence: str = "not known here; ask the authors before passing them on"
    scores: Sequence[PublishedScore] = field(default=())
