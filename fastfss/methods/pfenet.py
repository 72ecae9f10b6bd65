"""PFENet: a prior from high-level features, and a pyramid that enriches the query with the support.

Tian, Zhao, Shu, Yang, Li, Jia: "Prior Guided Feature Enrichment Network for Few-Shot Segmentation",
TPAMI 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders import Encoder
from fastfss.encoders.base import StagedEncoder
from fastfss.encoders.pointwise import pointwise
from fastfss.errors import expected, expected_kind
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.features import Features, map_of, stacked_features
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images, stacked_shots
from fastfss.methods.stacked import apart
from fastfss.ops import dense_match, masked_average_pool
from fastfss.task import Task
from fastfss.weights import KeyMap

Size = tuple[int, int] | torch.Size  # height, width

IGNORED = 255
WIDTH = 256  # channels of everything behind the encoder
POOLING_EPS = 5e-4  # added to the object's area
RANGE_EPS = 1e-7  # added to the range of a prior
# Pairs of query and way that are decoded as one batch: some 20 MB each at 473 pixels.
DECODED_TOGETHER = 16
STRIDE = 8  # images have 8 n + 1 pixels a side, so that every corner is a position

PASCAL_PYRAMID = (60, 30, 15, 8)


# The means that a public listing confirms.
SCORES = (
    PublishedScore("PASCAL-5i", "VGG-16", 1, 58.0, source="listing"),
    PublishedScore("COCO-20i", "VGG-16", 1, 34.1, source="listing"),
    PublishedScore("COCO-20i", "VGG-16", 5, 37.7, source="listing"),
)


@dataclass(frozen=True, eq=False)
class PFENetOutput:
    """What PFENet's training forward returns.

    Attributes:
        logits: (B, 2, H, W), at the query's size.
        auxiliary: of each branch of the pyramid (B, 2, b, b), at the branch's own size.
        prior: (B, h, w) float32, the mean over the shots.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...]
    prior: Tensor


class PFENet(FewShotSegmenter):
    """PFENet: the support's mean feature and a training-free prior guide a trained decoder.

    Args:
        encoder: the backbone, frozen; published with "pfenet_resnet50" and others of that name. Any
            that runs stage by stage serves, which those of timm do not.
        layers: the feature maps, shallow to deep: the last is matched for the prior, the others are
            joined on the grid of the deepest of them.
        size: see FewShotSegmenter; 8 n + 1 pixels. Published: 473, on COCO 641.
        pyramid: sides of the branches' grids in positions, or where at most 1 as fractions of the
            map's height and width; `COCO_PYRAMID` for models trained on COCO.
        batch_statistics: whether the frozen encoder's batch norms use, and keep a running mean of,
            the statistics of the training batches, as published.
        auxiliary_weight: of the branches' mean loss.
    """

    method = "pfenet"
    info = MethodInfo(
        title="PFENet",
        paper="Tian, Zhao, Shu, Yang, Li, Jia: Prior Guided Feature Enrichment Network for "
        "Few-Shot Segmentation",
        venue="TPAMI 2020",
        arxiv="2008.01449",
        encoders=("pfenet_resnet50", "pfenet_resnet101", "pfenet_vgg16_bn"),
        scores=SCORES,
        parity="seven golden cases: forward, training step, prior alone, letterbox",
    )
    published_keys = KeyMap(
        "PFENet", tuple((f"layer{stage}.", f"encoder.layer{stage}.") for stage in range(5))
    )
    head_keys = (
        *("down_query.", "down_supp.", "init_merge.", "alpha_conv.", "beta_conv."),
        *("inner_cls.", "res1.", "res2.", "cls."),
    )
    frame = "letterbox"
    cheap_update = False  # the masked object passes the deepest stage
    default_size = 473

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("layer2", "layer3", "layer4"),
        size: int | None = None,
        *,
        pyramid: Sequence[float] = PASCAL_PYRAMID,
        batch_statistics: bool = True,
        auxiliary_weight: float = 1.0,
    ) -> None:
        super().__init__(encoder, layers, size)
        self._check(encoder, pyramid)
        self.pyramid = tuple(pyramid)
        self.auxiliary_weight = auxiliary_weight
        encoder.requires_grad_(False)
        encoder.batch_statistics = batch_statistics

        middle = sum(encoder.info(layer).channels for layer in self.layers[:-1])
        branches = len(self.pyramid)
        # Attribute names and positions in the sequences are the published key names.
        self.down_query = nn.Sequential(*_pointwise(middle), nn.Dropout2d(0.5))
        self.down_supp = nn.Sequential(*_pointwise(middle), nn.Dropout2d(0.5))
        self.init_merge = nn.ModuleList(
            nn.Sequential(*_pointwise(2 * WIDTH + 1)) for _ in range(branches)
        )
        self.alpha_conv = nn.ModuleList(
            nn.Sequential(*_pointwise(2 * WIDTH)) for _ in range(1, branches)
        )
        self.beta_conv = nn.ModuleList(_residual() for _ in range(branches))
        self.inner_cls = nn.ModuleList(_classifier() for _ in range(branches))
        self.res1 = nn.Sequential(*_pointwise(WIDTH * branches))
        self.res2 = _residual()
        self.cls = _classifier()
        self.train(self.training)  # batch norms follow batch_statistics

    # ---- Support

    def encode_support(self, images: Images, masks: Images) -> Task:
        """Turn a support set into a Task; see FewShotSegmenter.encode_support.

        Images have 8 n + 1 pixels a side, the same in all shots. The Task holds "vector"
        (B, K, 256), the mean feature of the object; "high" (B, K, C, h, w), the deepest map, zero
        outside of the object; and "object" (B, K, h, w), the mask on its grid.
        """
        images, masks = stacked_shots(images, masks)
        _check_sides("images", images)
        if self.training and self.encoder.batch_statistics:
            # As published each shot passes alone: what passes together shares the statistics.
            pairs = zip(images.unbind(1), masks.unbind(1), strict=True)
            shots = [self._encode(*pair) for pair in pairs]
            tensors = {key: torch.stack([shot[key] for shot in shots], dim=1) for key in shots[0]}
        else:
            flat = self._encode(images.flatten(0, 1), masks.flatten(0, 1))
            tensors = {key: one.unflatten(0, images.shape[:2]) for key, one in flat.items()}
        return Task(self.method, tensors)

    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """Turn encoded shots into a Task; see FewShotSegmenter.support_from, and encode_support.

        The encoder's deepest stage runs, on the object alone.
        """
        maps, shot_masks = stacked_features(features, self.layers[:-1], masks)
        return Task(self.method, apart(self._masked(maps, shot_masks.flatten(0, 1)), shot_masks))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The maps of all layers."""
        _check_sides("images", images)
        maps: dict[str, Tensor] = self.encoder(images, self.layers)
        return maps

    def _encode(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The tensors of a Task, without its axis of shots: of (B, 3, H, W) and (B, H, W)."""
        return self._masked(self.encoder(images, self.layers[:-1]), masks)

    def _masked(self, maps: Mapping[str, Tensor], masks: Tensor) -> dict[str, Tensor]:
        """The same of the maps of all layers but the deepest."""
        *shallow, high = self.layers
        assert isinstance(self.encoder, StagedEncoder)
        last = maps[shallow[-1]]
        # In float32: low precision would place the samples of the mask wrongly.
        objects = (masks == 1).unsqueeze(1).float()
        small = _resize(objects, last.shape[-2:]).to(last.dtype)
        # The deepest stage sees the object alone.
        deep = self.encoder.resume(last * small, after=shallow[-1], until=high)
        deepest = _resize(objects, deep.shape[-2:]).to(deep.dtype)
        features = self.down_supp(self._joined(maps))
        vector = masked_average_pool(features, small, eps=POOLING_EPS).squeeze(1)
        return {"vector": vector, "high": deep * deepest, "object": deepest.squeeze(1)}

    def _joined(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The middle-level features: all maps but the deepest, the deeper first."""
        deeper_first = [maps[layer] for layer in reversed(self.layers[:-1])]
        size = deeper_first[0].shape[-2:]
        return torch.cat([_resize(one, size) for one in deeper_first], dim=1)

    # ---- Prior

    def priors(self, high: Tensor, task: Task) -> Tensor:
        """Each shot's prior, (B, K, h, w) float32 in [0, 1].

            p_j = max_i cos(s_i, q_j)        scaled to (p - min p) / (max p - min p + 1e-7)

        Published, i runs over all support positions; those outside of the object are blanked and
        have cosine 0, and after a ReLU no cosine is below that, so that the object's suffice. The
        published cosine has 1e-7 in its denominator, which lowers it by 1e-7 / (|s_i| |q_j|) of
        itself: below float32's rounding where the product of norms is above 1.

        Args:
            high: the query's deepest map (B, C, h, w).
            task: of `encode_support`.
        """
        support, objects = task.tensors["high"], task.tensors["object"]
        if support.shape[2] != high.shape[1]:
            wanted = f"high-level features (B, K, {high.shape[1]}, h, w)"
            raise expected("task", wanted, str(tuple(support.shape)))
        (batch, shots), grid = (high.shape[0], support.shape[1]), high.shape[-2:]
        support, objects = support.to(high.dtype), objects.to(high.dtype)
        if support.shape[0] == 1:
            # All queries' positions as one list, which serves every shot without a copy.
            flat = high.transpose(0, 1).flatten(1).expand(shots, -1, -1)
            best = dense_match(flat, support[0], mask=objects[0], reduce="max")
            best = best.view(shots, batch, *grid).transpose(0, 1)
        else:
            # Episodes: with one shot still a view, with several the query is repeated.
            flat = high.unsqueeze(1).expand(-1, shots, -1, -1, -1).flatten(0, 1)
            pairs = support.flatten(0, 1), objects.flatten(0, 1)
            best = dense_match(flat, pairs[0], mask=pairs[1], reduce="max")
            best = best.view(batch, shots, *grid)
        best = best.clamp_min(0)
        low, top = best.amin((2, 3), keepdim=True), best.amax((2, 3), keepdim=True)
        return (best - low) / (top - low + RANGE_EPS)

    # ---- Query

    def segment(
        self, query: Tensor, task: Task | Sequence[Task], output_size: tuple[int, int] | None = None
    ) -> Prediction:
        """Segment query images of 8 n + 1 pixels a side; see FewShotSegmenter.segment."""
        tasks = self.ways_of(query, task)
        _check_sides("query", query)
        return self.segment_from(self.encode(query), tasks, output_size)

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries of 8 n + 1 pixels a side; see FewShotSegmenter.segment_from.

        Published for one way; several are decided by the largest margin.
        """
        tasks = self.checked_ways(task, features.batch)
        query, high = self._query(features)
        size = output_size or features.size
        together = max(1, DECODED_TOGETHER // features.batch)
        pairs: list[Tensor] = []
        for first in range(0, len(tasks), together):
            some = tasks[first : first + together]
            logits, _, _ = self._decode(query, high, some, auxiliary=False)
            pairs += _resize(logits, size).chunk(len(some))
        return Prediction.from_pairs(pairs)

    def logits_grid(self, features: Features, tasks: Sequence[Task]) -> tuple[int, int]:
        """That of the middle-level features; see FewShotSegmenter.logits_grid."""
        height, width = map_of(features, self.layers[-2]).shape[-2:]
        return height, width

    def _query(self, features: Features) -> tuple[Tensor, Tensor]:
        """The reduced middle-level features (B, 256, h, w) and the deepest map (B, C, h', w')."""
        maps = {name: map_of(features, name) for name in self.layers}
        return self.down_query(self._joined(maps)), maps[self.layers[-1]]

    def _decode(
        self, features: Tensor, high: Tensor, tasks: Sequence[Task], *, auxiliary: bool
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Logits (N * B, 2, h, w) of N tasks, those of the branches, and the priors (N * B, h, w).

        The ways are one batch. Only the priors are made task by task, since to join the tasks'
        feature maps would copy them.
        """
        size = features.shape[-2:]
        shots = [_resize(self.priors(high, task), size) for task in tasks]
        prior = torch.cat([one.mean(dim=1) for one in shots])
        vectors = torch.cat([self._vector(task, features) for task in tasks])
        enriched, inner = self._enrich(features, vectors, prior.unsqueeze(1), auxiliary=auxiliary)
        return self.cls(enriched), inner, prior

    def _vector(self, task: Task, features: Tensor) -> Tensor:
        """The support's mean feature (B, 256), the mean over the shots."""
        vector = task.tensors["vector"].to(features.dtype).mean(dim=1)
        return vector.expand(features.shape[0], -1)

    # ---- Feature enrichment

    def _enrich(
        self,
        features: Tensor,  # (B, 256, h, w), of the query
        vectors: Tensor,  # (N * B, 256)
        prior: Tensor,  # (N * B, 1, h, w)
        *,
        auxiliary: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:  # (N * B, 256, h, w), of each branch (N * B, 2, b, b)
        """The pyramid: every branch hands its result to the next smaller one.

        The branches' results are enlarged and joined by W: W [x_1; x_2; ...] is the sum of W_i x_i,
        and product and resize commute, so that each product runs on the smaller of its two grids.
        """
        size = features.shape[-2:]
        weights = self.get_parameter("res1.0.weight").split(WIDTH, dim=1)
        joined = torch.zeros((), dtype=features.dtype, device=features.device)
        inner = []
        x = features
        for index, grid in enumerate(self._grids(size)):
            merged = self._merge(index, grid, features, vectors, prior)
            if index > 0:
                previous = _resize(_resize(x, size), grid)
                merged = merged + self.alpha_conv[index - 1](torch.cat([merged, previous], dim=1))
            x = merged + self.beta_conv[index](merged)
            if auxiliary:
                inner.append(self.inner_cls[index](x))
            least = x if _smaller(grid, size) else _resize(x, size)
            joined = joined + _resize(pointwise(least, weights[index]), size)
        y = joined.relu()
        return y + self.res2(y), tuple(inner)

    def _merge(
        self, index: int, grid: tuple[int, int], features: Tensor, vectors: Tensor, prior: Tensor
    ) -> Tensor:
        """ReLU(W [q; v; p]) = ReLU(W_q q + W_v v + W_p p) on a branch's grid: (N * B, 256, b, b).

        W_q q is the same for all ways; the vector v is the same at all positions.
        """
        size = features.shape[-2:]
        weight = self.get_parameter(f"init_merge.{index}.0.weight")
        of_query, of_vector, of_prior = weight.split([WIDTH, WIDTH, 1], dim=1)
        # Pool and product commute too.
        if _smaller(grid, size):
            shared = pointwise(_pool(features, grid), of_query)
        else:
            shared = pointwise(features, of_query)
            if grid != size:
                shared = _pool(shared, grid)
        ways = len(vectors) // len(features)
        constant = F.linear(vectors, of_vector.flatten(1))[..., None, None]
        # cat, unlike repeat, keeps channels-last maps so.
        x = (shared if ways == 1 else torch.cat([shared] * ways)) + constant
        on_grid = _resize(prior, grid).to(x.dtype)
        return torch.addcmul(x, of_prior.view(1, -1, 1, 1), on_grid).relu_()

    def _grids(self, size: Size) -> list[tuple[int, int]]:
        """Height and width of each branch, for a map of this size."""
        height, width = size
        return [
            (max(1, int(height * side)), max(1, int(width * side)))
            if side <= 1
            else (int(side), int(side))
            for side in self.pyramid
        ]

    # ---- Training

    def forward(self, images: Images, masks: Images, query: Tensor) -> PFENetOutput:
        """The training forward; arguments as in encode_support and segment."""
        # First the query: in this order the encoder's running statistics see the images.
        features, high = self._query(self.encode(query))
        task = self.encode_support(images, masks)
        logits, inner, prior = self._decode(features, high, [task], auxiliary=True)
        return PFENetOutput(_resize(logits, query.shape[-2:]), inner, prior)

    def loss(self, output: PFENetOutput, query_mask: Tensor) -> dict[str, Tensor]:
        """The published losses: cross-entropy, mean over the pixels that are not 255.

        Args:
            output: of forward.
            query_mask: (B, H, W) of {0, 1, 255}.

        Returns:
            "main", "auxiliary" (the branches' mean, its weight not applied) and "total".
        """
        target, size = query_mask.long(), query_mask.shape[-2:]

        def cross_entropy(logits: Tensor) -> Tensor:
            return F.cross_entropy(_resize(logits, size), target, ignore_index=IGNORED)

        main = cross_entropy(output.logits)
        auxiliary = torch.stack([cross_entropy(one) for one in output.auxiliary]).mean()
        total = main + self.auxiliary_weight * auxiliary
        return {"main": main, "auxiliary": auxiliary, "total": total}

    # ---- Checks

    def _check(self, encoder: Encoder, pyramid: Sequence[float]) -> None:
        if not isinstance(encoder, StagedEncoder):
            wanted = "one that runs stage by stage: the last sees masked features"
            raise expected_kind("encoder", wanted, encoder.name)
        deep = [encoder.features.index(encoder.info(layer)) for layer in self.layers]
        if len(deep) < 2 or deep != sorted(set(deep)):
            raise expected("layers", "two or more maps, shallow to deep", ", ".join(self.layers))
        if isinstance(self.size, int) and (self.size < 2 or (self.size - 1) % STRIDE):
            raise expected("size", "8 n + 1 pixels, such as 473 or 641", str(self.size))
        if not pyramid or any(not side > 0 or (side > 1 and side != int(side)) for side in pyramid):
            wanted = "whole numbers of positions, or fractions of at most 1"
            raise expected("pyramid", wanted, str(tuple(pyramid)))


def _pointwise(inputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, WIDTH, 1, bias=False), nn.ReLU(inplace=True)


def _residual() -> nn.Sequential:
    """Two 3x3 convolutions, each with a ReLU."""
    first, second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


def _classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(WIDTH, 2, 1),
    )


def _resize(maps: Tensor, size: Size) -> Tensor:
    """Bilinear with align_corners=True; nothing where the size is right."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def _pool(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Adaptive average pooling."""
    divides = maps.shape[2] % grid[0] == 0 and maps.shape[3] % grid[1] == 0
    if divides or not torch.compiler.is_compiling():
        return F.adaptive_avg_pool2d(maps, grid)
    # As products with constant matrices: other graphs have no operator for windows of two sizes.
    rows, columns = (
        F.adaptive_avg_pool1d(torch.eye(side, dtype=maps.dtype, device=maps.device)[None], wanted)
        for side, wanted in zip(maps.shape[2:], grid, strict=True)
    )
    return rows[0].T @ maps @ columns[0]


def _smaller(grid: Size, than: Size) -> bool:
    return grid[0] * grid[1] < than[0] * than[1]


def _check_sides(argument: str, images: Tensor) -> None:
    height, width = images.shape[-2:]
    if (height - 1) % STRIDE or (width - 1) % STRIDE:
        raise expected(argument, "8 n + 1 pixels a side, such as 473", f"{height} x {width}")
