"""Label propagation: masks carried over by matching frozen features densely, in space and time.

Far away, in other images and long past frames, any position of a reference may be what a query's
position shows; near in time only those within a window. No part of it is trained.

    p_far(i)  = labels, weighed by the softmax of far_scale * cos(q_i, k_j) over references' keys
    p_near(i) = the same with near_scale over the windows of recent frames
    p = (1 - far_weight) p_near + far_weight p_far

The softmax over windows of the last frames and the first is that of Jabri, Owens, Efros (NeurIPS
2020), who keep the k largest; here the references have a softmax of their own, steeper, because
their many positions would else outweigh a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.features import Features, encoded_shots, map_of, normalised
from fastfss.methods.info import MethodInfo
from fastfss.methods.local_match import local_match_sums
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images
from fastfss.ops import dense_match
from fastfss.task import Task
from fastfss.weights import KeyMap

CELLS = 24  # a side; a support's keys are pooled in so many cells, background and object apart
EPS = 1e-4  # of probabilities whose logit is taken


@dataclass(frozen=True)
class PropagationConfig:
    """How far and how sharply to match; see the module's formulas.

    Attributes:
        near_scale: of the cosines with recent frames.
        far_scale: of the cosines with references.
        far_weight: of what the references say, where there are recent frames too.
        radius: of the window in recent frames, in positions of the map.
        near_layers: so many of the layers, the finest, are matched in recent frames.
    """

    near_scale: float = 20.0
    far_scale: float = 60.0
    far_weight: float = 0.5
    radius: int = 4
    near_layers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.far_weight <= 1:
            raise expected("far_weight", "0 to 1", str(self.far_weight))
        if self.radius < 0 or self.near_layers < 1:
            came = f"radius {self.radius}, near_layers {self.near_layers}"
            raise expected("radius", "radius of 0 and near_layers of 1 or more", came)


@dataclass(frozen=True, eq=False)
class Reference:
    """Keys of an image with labels, wherever in it they lie.

    Attributes:
        keys: (C, P), of unit length.
        values: (A + 1, P): whether each key is background, or which object's.
        weights: (P,), 0 where a key stands for nothing.
    """

    keys: Tensor
    values: Tensor
    weights: Tensor

    def weighted(self, factor: float) -> Reference:
        """The same with other weights."""
        return replace(self, weights=self.weights * factor)

    def only(self, label: int) -> Reference:
        """The same for one object; whatever else there was is background."""
        value = self.values[label]
        return replace(self, values=torch.stack([1 - value, value]))


class LabelPropagation(FewShotSegmenter):
    """Label propagation on frozen features; see the module.

    As a few-shot method it has references alone; a video session gives it recent frames too.

    Args:
        encoder: the backbone.
        layers: feature maps, each normalised, then put together on the first one's grid.
        size: see FewShotSegmenter.
        layer_weights: of the layers' cosines; by default 1, and a half from the third on.
        config: how to match.
    """

    method = "propagation"
    info = MethodInfo(
        title="Label propagation",
        paper="dense matching of frozen features, after Jabri, Owens, Efros: Space-Time "
        "Correspondence as a Contrastive Random Walk",
        venue="NeurIPS 2020",
        arxiv="2006.14613",
        encoders=("mobilenet_v2_tf",),
        parity="none: no published weights or figures are claimed",
        weights_licence="the encoder's",
    )
    published_keys = KeyMap("propagation", (("encoder.", "encoder."),))

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("layer2", "layer3", "layer4"),
        size: int | None = None,
        *,
        layer_weights: Sequence[float] | None = None,
        config: PropagationConfig | None = None,
    ) -> None:
        super().__init__(encoder, layers, size)
        self.config = config or PropagationConfig()
        given = [1.0 if n < 2 else 0.5 for n in range(len(self.layers))]
        given = given if layer_weights is None else [float(weight) for weight in layer_weights]
        if len(given) != len(self.layers) or min(given) <= 0:
            wanted = f"a positive number for each of {len(self.layers)} layers"
            raise expected("layer_weights", wanted, str(layer_weights))
        self.layer_weights = tuple(given)
        near = range(min(self.config.near_layers, len(self.layers)))
        self._near_channels = sum(encoder.info(self.layers[n]).channels for n in near)
        # Of the joined map's squared length, what the first layers make.
        self._near_share = sum(given[n] for n in near) / sum(given)
        encoder.requires_grad_(False)

    @property
    def mask_stride(self) -> int:
        """See FewShotSegmenter.mask_stride; cells count every pixel."""
        return 0

    def maps(self, images: Tensor) -> Mapping[str, Tensor]:
        """The one map that is matched, "features": (B, C, h, w), of unit length along C."""
        maps = self.encoder(images, self.layers)
        return {"features": joined([maps[name] for name in self.layers], self.layer_weights)}

    # ---- Few-shot

    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """Turn encoded shots into a Task of keys; see FewShotSegmenter.support_from.

        The Task holds "keys" (B, K, C, P), "values" (B, K, P) and "weights" (B, K, P). Pixels of
        255 are no key.
        """
        shot_maps, shot_masks = encoded_shots(features, "features", masks)
        shots = [
            cell_keys(maps, label_shares(mask, (maps.shape[2], maps.shape[3])))
            for maps, mask in zip(shot_maps, shot_masks, strict=True)
        ]
        keys, weights = (torch.stack(parts, dim=1) for parts in zip(*shots, strict=True))
        cells = keys.shape[3] // 2
        values = torch.cat([weights.new_zeros(cells), weights.new_ones(cells)]).expand_as(weights)
        return Task(self.method, {"keys": keys, "values": values.contiguous(), "weights": weights})

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from.

        The logits are those of the probability p: 0 and log p / (1 - p).
        """
        tasks = self.checked_ways(task, features.batch)
        query, size = map_of(features, "features"), output_size or features.size
        pairs = []
        for one in tasks:
            logit = torch.logit(self._of_task(query, one).float(), EPS)
            logit = F.interpolate(logit[:, None], size, mode="bilinear")
            pairs.append(torch.cat([torch.zeros_like(logit), logit], dim=1))
        return Prediction.from_pairs(pairs)

    def _of_task(self, query: Tensor, task: Task) -> Tensor:
        """p_far (B, h, w) of queries (B, C, h, w), all shots in one softmax."""
        batch = query.shape[0]
        keys, values, weights = (task.tensors[name] for name in ("keys", "values", "weights"))
        if keys.shape[2] != query.shape[1]:
            raise expected("task", f"keys (B, K, {query.shape[1]}, P)", str(tuple(keys.shape)))
        flat = keys.transpose(1, 2).flatten(2).to(query).expand(batch, -1, -1)
        value = values.flatten(1)[:, None].to(query).expand(batch, -1, -1)
        mask = weights.flatten(1).to(query).expand(batch, -1)
        return dense_match(query, flat, value, mask, scale=self.config.far_scale)[:, 0]

    # ---- Video

    def reference(self, features: Features, shares: Tensor) -> Reference:
        """What an image with labels is to frames far from it.

        Args:
            features: of one image.
            shares: (A + 1, h, w) on the features' grid: how much of each position is background,
                and each object's.
        """
        maps = map_of(features, "features").float()
        keys, weights = cell_keys(maps, shares[None])
        labels = shares.shape[0]
        values = torch.eye(labels, device=keys.device)
        values = values.repeat_interleave(keys.shape[2] // labels, dim=1)
        kept = weights[0] > 0
        return Reference(keys[0][:, kept], values[:, kept], weights[0][kept])

    def near(
        self,
        features: Features,
        recent: Sequence[tuple[Features, Tensor]],
        window: tuple[int, int, int, int] | None = None,
    ) -> Tensor:
        """What frames near in time say of a frame.

        Args:
            features: of the frame.
            recent: features and shares (A + 1, h, w) of at least one frame, on the same grid.
            window: top, left, bottom and right of the positions to look at; all by default. Others
                are background.

        Returns:
            (A + 1, h, w): background, then the objects; the sum is 1.
        """
        query = self._fine(features)
        height, width = query.shape[1:]
        top, left, bottom, right = window or (0, 0, height, width)
        radius = self.config.radius
        # Keys may lie a radius beyond the window.
        rows = slice(max(0, top - radius), min(height, bottom + radius))
        columns = slice(max(0, left - radius), min(width, right + radius))
        pairs = [
            local_match_sums(
                query[:, rows, columns],
                self._fine(one)[:, rows, columns],
                shares[:, rows, columns].float(),
                radius=radius,
                scale=self.config.near_scale,
            )
            for one, shares in recent
        ]
        numerators, denominators = zip(*pairs, strict=True)
        inside = torch.stack(numerators).sum(0) / torch.stack(denominators).sum(0)
        if window is None:
            return inside
        found = inside.new_zeros(inside.shape[0], height, width)
        found[0] = 1
        y, x = top - rows.start, left - columns.start
        own = inside[:, y : y + bottom - top, x : x + right - left]
        found[:, top:bottom, left:right] = own
        return found

    def _fine(self, features: Features) -> Tensor:
        """The first layers' part of a map, of unit length: (C', h, w)."""
        found = map_of(features, "features")[0, : self._near_channels].float()
        return found / math.sqrt(self._near_share)

    def far(
        self,
        features: Features,
        references: Sequence[Reference],
        where: Tensor | None = None,
    ) -> Tensor:
        """What images say of a frame, wherever in them it may be.

        Args:
            features: of the frame.
            references: at least one, all of the same objects.
            where: flat numbers of the positions to look at; all by default. Others are background.

        Returns:
            (A + 1, h, w): background, then the objects; the sum is 1, or 0 where no reference says
            anything.
        """
        keys = torch.cat([one.keys for one in references], dim=1)
        values = torch.cat([one.values for one in references], dim=1)
        weights = torch.cat([one.weights for one in references])
        query, scale = map_of(features, "features"), self.config.far_scale
        if where is None:
            whole = query.float()
            return dense_match(whole, keys[None], values[None], weights[None], scale=scale)[0]
        height, width = query.shape[2:]
        found = values.new_zeros(values.shape[0], height * width)
        found[0] = 1
        if len(where):
            # Whole positions, which lie together in channels-last maps.
            rows = query[0].permute(1, 2, 0).reshape(height * width, -1)
            some = rows.index_select(0, where).float().t()[None, :, None]  # (1, C, 1, P')
            found[:, where] = dense_match(
                some, keys[None], values[None], weights[None], scale=scale
            )[0, :, 0]
        return found.view(-1, height, width)

    def blend(self, near: Tensor, far: Tensor) -> Tensor:
        """p of p_near and p_far."""
        return torch.lerp(near, far, self.config.far_weight)


def joined(maps: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Maps (B, C_n, h_n, w_n) as one of unit length along C, on the first one's grid.

    Its cosines are the mean of the maps' own, weighed.
    """
    size = maps[0].shape[-2:]
    parts = [
        one if one.shape[-2:] == size else F.interpolate(one, size, mode="bilinear") for one in maps
    ]
    factors = [math.sqrt(weight / sum(weights)) for weight in weights]
    pairs = zip(parts, factors, strict=True)
    return torch.cat([normalised(one) * factor for one, factor in pairs], dim=1)


def label_shares(
    mask: Tensor,  # (B, H, W) of {0, 1, 255}
    size: tuple[int, int],
) -> Tensor:  # (B, 2, h, w)
    """How much of each position is background, and object; 255 is neither."""
    both = torch.stack([mask == 0, mask == 1], dim=1).float()
    return F.interpolate(both, size, mode="area")


def cell_keys(
    features: Tensor,  # (B, C, h, w)
    shares: Tensor,  # (B, L, h, w)
) -> tuple[Tensor, Tensor]:  # (B, C, L * P), (B, L * P)
    """Mean features of each cell of a grid, of each label apart, and how much of it the label is.

    So no key mixes labels, and a small object keeps its own. A key that stands for nothing has
    weight 0.
    """
    height, width = features.shape[2:]
    cells = (min(CELLS, height), min(CELLS, width))
    weights = F.adaptive_avg_pool2d(shares, cells).flatten(2)  # (B, L, P)
    # Label by label: the products of all at once would be copied to be pooled.
    sums = [
        F.adaptive_avg_pool2d(features * share, cells).flatten(2)
        for share in shares.to(features).split(1, dim=1)
    ]
    keys = F.normalize(torch.stack(sums, dim=2), dim=1)  # (B, C, L, P)
    if weights.shape[2] < CELLS * CELLS:
        # Small images have fewer cells; shots of a task have equally many keys.
        missing = CELLS * CELLS - weights.shape[2]
        keys, weights = F.pad(keys, (0, missing)), F.pad(weights, (0, missing))
    return keys.flatten(2), weights.flatten(1)
