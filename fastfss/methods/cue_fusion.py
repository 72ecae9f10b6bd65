"""Cue fusion: fixed ways of matching, weighed against each other by a small network.

The package's own method, for its default weights. Every way of matching that is worth something
without training (prototypes, dense matching, the query's own prototypes) becomes a map, a cue; what
is learned is how to read the cues together with the query's edges. As the cues say nothing of the
class, little can be learned about the classes of training, and much about objects.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.cue_decoder import CueDecoder
from fastfss.methods.features import Features, encoded_shots, map_of, normalised
from fastfss.methods.frames import frame_size
from fastfss.methods.info import MethodInfo
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images
from fastfss.ops import dense_match
from fastfss.task import Task
from fastfss.weights import KeyMap

SCALE = 20.0  # of the cosines
SHARPNESS = 4  # of the weights of the query's own prototypes
LEAST_RANGE = 1e-3  # of the votes; below, rounding alone says where they are surest
MARK_WIDTH = 10.0  # of a click's disk, in pixels of the image as the encoder sees it


@dataclass(frozen=True, eq=False)
class Support:
    """The shots at one grid: T positions, K shots side by side.

    Attributes:
        key: (B, C, T).
        inside, outside: (B, T), the share of each position that the object and the background have;
            0 where nothing is known.
    """

    key: Tensor
    inside: Tensor
    outside: Tensor


class CueFusion(FewShotSegmenter):
    """Matching cues, read together by a small decoder.

    Args:
        encoder: with maps at strides 4, 8, 16 and 32, for example "mobilenet_v2_tf".
        layers: the four maps, fine to coarse.
        size: pixels of the longer side in `fit` and `predict`.
        embedding: channels of the learned embedding.
        width: channels of the decoder.
        scales: at which images are matched, as shares of `size`: 1 and smaller ones; the logits are
            averaged.
    """

    method = "cue-fusion"
    info = MethodInfo(
        title="cue fusion",
        paper="this package's own: docs/default-model.md",
        venue="unpublished",
        arxiv="",
        encoders=("mobilenet_v2_tf",),
        parity="none to be equal to",
        weights_licence="Apache-2.0, with the package",
    )
    published_keys = KeyMap("cue fusion", ())
    head_keys = ("embed.", "decoder.", "calibration")
    takes_hints = True
    grid_corners = False
    unsaid = "ignored"
    default_size = 480

    calibration: Tensor

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("layer1", "layer2", "layer3", "layer4"),
        size: int | None = None,
        *,
        embedding: int = 96,
        width: int = 64,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(encoder, layers, size)
        self.scales = tuple(float(scale) for scale in scales)
        if not self.scales or self.scales[0] != 1 or not all(0 < s <= 1 for s in self.scales):
            raise expected("scales", "1 and then numbers above 0 up to 1", str(tuple(scales)))
        infos = [encoder.info(layer) for layer in self.layers]
        if [one.stride for one in infos] != [4, 8, 16, 32]:
            came = ", ".join(f"{one.name} ({one.stride})" for one in infos)
            raise expected("layers", "four maps of strides 4, 8, 16 and 32", came)
        widths = [one.channels for one in infos]
        self.embed = nn.Conv2d(sum(widths[1:]), embedding, 1)
        nn.init.orthogonal_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]
        self.decoder = CueDecoder(widths, width)
        # Measured on classes that training did not see: what is added to the logits of masks; the
        # slope and the offset of the logit of presence.
        self.register_buffer("calibration", torch.tensor([0.0, 1.0, 0.0]))
        encoder.requires_grad_(False)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The encoder's maps and "embedding", at stride 16; of a second scale with "@1" behind."""
        found: dict[str, Tensor] = {}
        for place, scale in enumerate(self.scales):
            size = (round(images.shape[2] * scale), round(images.shape[3] * scale))
            scaled = images if scale == 1 else F.interpolate(images, size, mode="bilinear")
            maps = self.embedded(self.encoder(scaled, self.layers))
            found |= {at_scale(name, place): one for name, one in maps.items()}
        return found

    def settings(self) -> dict[str, str]:
        """See FewShotSegmenter.settings."""
        return {**super().settings(), "scales": ",".join(map(str, self.scales))}

    def embedded(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The maps of the encoder with the learned one."""
        fine, middle, coarse = (normalised(maps[name]) for name in self.layers[1:])
        size = (middle.shape[2], middle.shape[3])
        together = [
            F.adaptive_avg_pool2d(fine, size),
            middle,
            F.interpolate(coarse, size, mode="bilinear"),
        ]
        return {**maps, "embedding": self.embed(torch.cat(together, dim=1))}

    @property
    def matched(self) -> tuple[str, ...]:
        """The maps that are matched."""
        return (*self.layers[1:], "embedding")

    def point_width(self, size: tuple[int, int]) -> float:
        """Diameter of a point's disk in pixels of the image: 10 of those that the encoder sees."""
        _, seen = frame_size(*size, self.frame, self.size)
        return MARK_WIDTH * max(own / framed for own, framed in zip(size, seen, strict=True))

    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """Turn encoded shots into a Task; see FewShotSegmenter.support_from.

        The Task holds for each matched map "key.<map>" (B, K, C, T), T its positions, and
        "inside.<map>" and "outside.<map>" (B, K, T); a smaller shot is filled up with positions of
        which nothing is known.
        """
        tensors: dict[str, Tensor] = {}
        # The same for all maps of one grid.
        kinds: dict[int, Tensor] = {}
        known: dict[tuple[int, tuple[int, int]], tuple[Tensor, Tensor]] = {}
        for place, layer in itertools.product(range(len(self.scales)), self.matched):
            name = at_scale(layer, place)
            maps, shot_masks = encoded_shots(features, name, masks)
            stride = 16 if layer == "embedding" else self.encoder.info(layer).stride
            room = max(
                self._positions(stride / self.scales[place]),
                *(one.shape[-2] * one.shape[-1] for one in maps),
            )
            keys, insides, outsides = [], [], []
            for shot, (one, mask) in enumerate(zip(maps, shot_masks, strict=True)):
                size = (one.shape[-2], one.shape[-1])
                if (shot, size) not in known:
                    if shot not in kinds:
                        kinds[shot] = label_kinds(mask, one.dtype)
                    known[shot, size] = shares(kinds[shot], size, one.dtype)
                inside, outside = known[shot, size]
                free = room - one.shape[-2] * one.shape[-1]
                keys.append(F.pad(one.flatten(2), (0, free)))
                insides.append(F.pad(inside.flatten(1), (0, free)))
                outsides.append(F.pad(outside.flatten(1), (0, free)))
            tensors[f"key.{name}"] = torch.stack(keys, dim=1)
            tensors[f"inside.{name}"] = torch.stack(insides, dim=1)
            tensors[f"outside.{name}"] = torch.stack(outsides, dim=1)
        return Task(self.method, tensors)

    def _positions(self, stride: float) -> int:
        """How many positions an image of `size` has at most; of two sides the longer counts twice.

        So an engine of 360 x 480 pixels takes the tasks of a model whose longer side is 480.
        """
        side = max(self.size) if isinstance(self.size, tuple) else self.size or 0
        return math.ceil(side / stride) ** 2

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from."""
        tasks = self.checked_ways(task, features.batch)
        return self._segment(features, tasks, [None] * len(tasks), output_size)

    def logits_grid(self, features: Features, tasks: Sequence[Task]) -> tuple[int, int]:
        """That of stride 4; see FewShotSegmenter.logits_grid."""
        height, width = map_of(features, self.layers[0]).shape[-2:]
        return height, width

    def segment_hinted(
        self,
        features: Features,
        task: Sequence[Task],
        hints: Sequence[Tensor],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries with hints; see FewShotSegmenter.segment_hinted."""
        tasks = self.checked_ways(task, features.batch)
        return self._segment(features, tasks, hints, output_size)

    def _segment(
        self,
        features: Features,
        tasks: Sequence[Task],
        hints: Sequence[Tensor | None],  # one a way, (B, 3, h, w)
        output_size: tuple[int, int] | None,
    ) -> Prediction:
        shift, slope, offset = self.calibration.unbind()
        grid = self.logits_grid(features, tasks)
        logits, presence = [], []
        for one, hint in zip(tasks, hints, strict=True):
            scales = [self._at(place, features, one, hint) for place in range(len(self.scales))]
            grown = [F.interpolate(found, grid, mode="bilinear") for found, _ in scales]
            found = torch.stack(grown).mean(dim=0) + shift
            found = F.interpolate(found, output_size or features.size, mode="bilinear")
            logits.append(torch.cat([torch.zeros_like(found), found], dim=1))
            there = torch.stack([there for _, there in scales]).mean(dim=0)
            presence.append((there * slope + offset).sigmoid())
        return Prediction.from_pairs(logits, torch.stack(presence, dim=1))

    def _at(
        self, place: int, features: Features, task: Task, hint: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`decode` at one of the scales."""
        names = (*self.layers, "embedding")
        maps = {name: map_of(features, at_scale(name, place)) for name in names}
        supports = {n: self.support(task, at_scale(n, place), maps[n]) for n in self.matched}
        return self.decode(maps, supports, hint)

    def support(self, task: Task, name: str, query: Tensor) -> Support:
        """The shots of a task at one map's grid."""
        key = task.tensors.get(f"key.{name}")
        if key is None or key.shape[2] != query.shape[1]:
            came = ", ".join(f"{k} {tuple(v.shape)}" for k, v in task.tensors.items())
            raise expected("task", f"key.{name} (B, K, {query.shape[1]}, T)", came)
        batch = query.shape[0]
        shares_ = (task.tensors[f"{side}.{name}"].flatten(1) for side in ("inside", "outside"))
        inside, outside = (one.to(query.dtype).expand(batch, -1) for one in shares_)
        keys = key.to(query.dtype).transpose(1, 2).flatten(2).expand(batch, -1, -1)
        return Support(keys, inside, outside)

    def decode(
        self, maps: Mapping[str, Tensor], supports: Mapping[str, Support], hints: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The logits of the object (B, 1, h, w) at stride 4, and of its presence (B,)."""
        cues = self.cues(maps, supports)
        found: tuple[Tensor, Tensor] = self.decoder(cues, [maps[n] for n in self.layers], hints)
        return found

    def cues(self, maps: Mapping[str, Tensor], supports: Mapping[str, Support]) -> list[Tensor]:
        """The cues of each matched map, (B, N, h, w) at its grid."""
        found = {name: matching_cues(maps[name], supports[name]) for name in self.matched}
        # What all maps say together, at the grid of stride 16.
        size = maps["embedding"].shape[-2:]
        names = (self.layers[2], self.layers[3], "embedding")
        votes = [F.interpolate(found[name][:, :1], size, mode="bilinear") for name in names]
        vote = torch.stack(votes).mean(dim=0).detach()
        return [
            torch.cat([found[name], own_cues(maps[name], vote)], dim=1) for name in self.matched
        ]


def at_scale(name: str, place: int) -> str:
    """What a map is called among those of all scales."""
    return f"{name}@{place}" if place else name


def label_kinds(mask: Tensor, dtype: torch.dtype) -> Tensor:  # (B, 2, H, W)
    """Whether each pixel of a mask (B, H, W) of {0, 1, 255} is object, and background."""
    return torch.stack([mask == 1, mask == 0], dim=1).to(torch.promote_types(dtype, torch.float32))


def shares(
    kinds: Tensor,  # (B, 2, H, W)
    size: tuple[int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # (B, h, w) each
    """The share of each cell of a grid that is object, and background; see `label_kinds`."""
    inside, outside = F.adaptive_avg_pool2d(kinds, size).to(dtype).unbind(1)
    return inside, outside


def matching_cues(
    query: Tensor,  # (B, C, h, w)
    support: Support,
) -> Tensor:  # (B, 5, h, w)
    """What one map says of where the object is.

    The mask that dense matching transfers; the cosines with the most similar position of the object
    and of the background; the cosines with their prototypes.
    """
    known = support.inside + support.outside
    share = support.inside / known.clamp_min(1e-6)
    transfer = dense_match(query, support.key, share.unsqueeze(1), known, scale=SCALE)
    # A thing of less than half a cell still has its best cell.
    best = support.inside.amax(dim=1, keepdim=True).clamp_max(0.5)
    inside = (support.inside >= best) & (support.inside > 0)
    nearest = [
        dense_match(query, support.key, mask=where, reduce="max").unsqueeze(1).to(query.dtype)
        for where in (inside, support.outside > 0.5)
    ]
    keys = F.normalize(support.key, dim=1)
    weights = torch.stack([support.inside, support.outside], dim=2)  # (B, T, 2)
    return torch.cat([transfer, *nearest, prototype_cues(query, keys @ weights)], dim=1)


def own_cues(
    query: Tensor,  # (B, C, h, w)
    vote: Tensor,  # (B, 1, h', w')
) -> Tensor:  # (B, 2, h, w)
    """The cosines with prototypes of the query itself, of where the others are surest.

    Where all votes are alike, as after clicks on the object alone, both are the mean of the query.
    """
    vote = F.interpolate(vote, query.shape[-2:], mode="bilinear").flatten(2)
    low, high = vote.amin(dim=2, keepdim=True), vote.amax(dim=2, keepdim=True)
    sure = (vote - low) / (high - low).clamp_min(LEAST_RANGE)
    sure = torch.where(high - low < LEAST_RANGE, 0.5, sure)
    weights = torch.cat([sure, 1 - sure], dim=1).pow(SHARPNESS).transpose(1, 2)
    return prototype_cues(query, F.normalize(query, dim=1).flatten(2) @ weights)


def prototype_cues(
    query: Tensor,  # (B, C, h, w)
    prototypes: Tensor,  # (B, C, N), of any length; 0 for none
) -> Tensor:  # (B, N, h, w)
    """Cosines."""
    unit = F.normalize(prototypes, dim=1).transpose(1, 2)
    cosines: Tensor = unit @ F.normalize(query, dim=1).flatten(2)
    return cosines.reshape(*cosines.shape[:2], *query.shape[-2:])
