"""Protocols: everything that stands behind a figure beside the method and the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from fastfss.data.resizing import MaskResize
from fastfss.errors import expected
from fastfss.protocols.folds import FoldRule

Sampler = Literal["hsnet", "fss1000", "pfenet", "panet", "ssp", "denet", "class"]
Reading = Literal["square", "letterbox", "original", "method"]
Figure = Literal["fold", "seen", "pfenet", "confusion", "panet", "denet"]


@dataclass(frozen=True)
class Protocol:
    """A named, versioned protocol.

    Attributes:
        name, version: a figure names both; a change of anything below is a new version.
        about: one line.
        sets: the kinds of data sets that it is for; a figure on others says that it is none of the
            published ones.
        part: of the set.
        folds: how classes are held out, for each kind of set.
        sampler: which published sampler draws the episodes.
        episodes: how many a run has, for each kind of set.
        runs: how many, with the seeds seed, seed + 1, ...; of several the mean is taken.
        seed: of the first run.
        minimum: pixels of its class that an image needs, where the sampler asks for it.
        minimum_share: the same as a share of the image.
        reading: how images reach the method: "square": both sides to `size`; "letterbox": PFENet's;
            "original": as they are; "method": as `fit` and `predict` do it.
        size: pixels; None is the method's own.
        mask_resize: how "square" shrinks masks, see `fastfss.data.resizing.resize_maps`.
        score_original: whether scores are counted at the image's own size.
        void_support: what support pixels of 255 become, background (0) or not known (255).
        void_query: likewise of the query: counted as background, or left out.
        flips: whether images are mirrored at random, as DENet's published test does.
        figure: how counts become figures; see docs/protocols.md.
    """

    name: str
    version: int
    about: str
    sets: tuple[str, ...]
    part: Mapping[str, str]
    folds: Mapping[str, FoldRule]
    sampler: Sampler
    episodes: Mapping[str, int]
    figure: Figure
    reading: Reading
    runs: int = 1
    seed: int = 0
    minimum: int = 1
    minimum_share: Mapping[str, float] = field(default_factory=dict)
    size: int | None = None
    mask_resize: MaskResize = "torch"
    score_original: bool = False
    void_support: int = 0
    void_query: int = 255
    flips: bool = False

    def fold_rule(self, kind: str) -> FoldRule:
        """How a kind of set is divided; a set without published folds at random."""
        return self.folds.get(kind, "random")

    def at_original_size(self) -> Protocol:
        """The same, counted at the images' own size: an option of HSNet's and DCAMA's code.

        Raises:
            ValueError: a protocol that has no such option.
        """
        if self.sampler not in ("hsnet", "fss1000"):
            raise expected("original_size", "hsnet or fss1000", repr(self.name))
        return replace(self, score_original=True)

    def without_flips(self) -> Protocol:
        """The same without mirroring: figures that are not the published ones.

        Raises:
            ValueError: a protocol that mirrors nothing.
        """
        if not self.flips:
            raise expected("no_flips", "denet", repr(self.name))
        return replace(self, flips=False)

    def digest(self, **setting: object) -> str:
        """sha256 over the protocol and the setting in which it was used."""
        content = json.dumps({**asdict(self), **setting}, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()


_BLOCKS: FoldRule = "contiguous"
_STRIDES: FoldRule = "interleaved"

PROTOCOLS: dict[str, Protocol] = {
    one.name: one
    for one in (
        Protocol(
            name="hsnet",
            version=1,
            about="HSNet, DCAMA, IMR-HSNet, SSP's second table: 1000 episodes, square images",
            sets=("pascal", "coco"),
            part={"pascal": "val", "coco": "val"},
            folds={"pascal": _BLOCKS, "coco": _STRIDES},
            sampler="hsnet",
            episodes={"pascal": 1000, "coco": 1000},
            figure="fold",
            reading="square",
            minimum=2048,
        ),
        Protocol(
            name="fss1000",
            version=1,
            about="HSNet on FSS-1000: every image of the 240 test classes is a query once",
            sets=("fss1000",),
            part={"fss1000": "test"},
            folds={"fss1000": "all", "folder": "all"},
            sampler="fss1000",
            episodes={},
            figure="fold",
            reading="square",
        ),
        Protocol(
            name="pfenet",
            version=1,
            about="PFENet: the validation list over and over, letterboxed, scored at full size",
            sets=("pascal", "coco"),
            part={"pascal": "val", "coco": "val"},
            folds={"pascal": _BLOCKS, "coco": _STRIDES},
            sampler="pfenet",
            episodes={"pascal": 5000, "coco": 20000},
            figure="pfenet",
            reading="letterbox",
            seed=321,
            minimum=2048,
            score_original=True,
            void_support=255,
        ),
        Protocol(
            name="panet",
            version=1,
            about="PANet, PPNet: 5 runs of 1000 episodes from the training images",
            sets=("pascal", "coco"),
            part={"pascal": "train", "coco": "train"},
            folds={"pascal": _BLOCKS, "coco": _BLOCKS},
            sampler="panet",
            episodes={"pascal": 1000, "coco": 1000},
            figure="panet",
            reading="square",
            runs=5,
            seed=1234,
            size=417,
            mask_resize="pillow",
        ),
        Protocol(
            name="ssp",
            version=1,
            about="SSP's and MLC's own: 5 runs, images at their own size",
            sets=("pascal", "coco"),
            part={"pascal": "val", "coco": "val"},
            folds={"pascal": _BLOCKS, "coco": _BLOCKS},
            sampler="ssp",
            episodes={"pascal": 1000, "coco": 4000},
            figure="confusion",
            reading="original",
            runs=5,
            minimum=2048,
            score_original=True,
            void_support=255,
        ),
        Protocol(
            name="denet",
            version=1,
            about="DENet's bIOU, for CANet, PGNet and AMP in its framework too: with random flips",
            sets=("pascal", "coco"),
            part={"pascal": "denet_val", "coco": "val"},
            folds={"pascal": _BLOCKS, "coco": _STRIDES},
            sampler="denet",
            episodes={"pascal": 1000, "coco": 1000},
            figure="denet",
            reading="square",
            seed=1234,
            minimum_share={"pascal": 0.02, "coco": 0.01},
            size=321,
            mask_resize="pillow",
            void_query=0,
            flips=True,
        ),
        Protocol(
            name="classes",
            version=2,
            about="for your own data: classes held out at random, images as in fit and predict",
            sets=("folder", "fss1000", "pascal", "coco"),
            part={"pascal": "val", "coco": "val", "fss1000": "test"},
            folds={},
            sampler="class",
            episodes={},
            figure="seen",
            reading="method",
            score_original=True,
            void_support=255,
        ),
    )
}
"""The published protocols and those of this package, by name."""


def get_protocol(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        ValueError: there is none of the name.
    """
    if name not in PROTOCOLS:
        raise expected("protocol", f"one of {', '.join(sorted(PROTOCOLS))}", repr(name))
    return PROTOCOLS[name]
