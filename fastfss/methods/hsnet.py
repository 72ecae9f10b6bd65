"""HSNet: hypercorrelations of many feature levels, squeezed by 4D convolutions.

Min, Kang, Cho: "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.features import Features, map_of
from fastfss.methods.hypercorrelation import Grid, HypercorrelationLearner, Level
from fastfss.methods.info import MethodInfo
from fastfss.methods.level_pyramid import STRIDES, Fusion, LevelPyramid
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images
from fastfss.methods.stacked import apart
from fastfss.task import Task
from fastfss.weights import KeyMap

HSNET_KEYS = KeyMap("HSNet", (("backbone.features.", "encoder.body."), ("backbone.", "encoder.")))


class HSNet(LevelPyramid):
    """HSNet: cosine of all query with all object positions in many levels, then a 4D learner.

    The backbone stays as ImageNet made it. Shots are segmented one by one and vote.

    Args:
        encoder: published with "blocks_resnet50", "blocks_resnet101" and "blocks_vgg16"; others
            need maps at strides 8, 16 and 32.
        layers: the maps to correlate; all of those strides by default.
        size: both sides to which `fit` and `predict` bring images; published: 400.
        fusion: "vote" as published: a pixel is foreground where at least half as many shots say so
            as anywhere in the image; "mean": the mean of the shots' logits.
        grid: the learner's output grid, see HypercorrelationLearner; "square" as published differs
            from "query" only for images that are not square.
        memory_mib: how much memory the correlations of the shots and ways that are segmented
            together may take; at least one is, and on a CPU no more than 64 MiB of them. The
            published code has one at a time.
    """

    method = "hsnet"
    info = MethodInfo(
        title="HSNet",
        paper="Min, Kang, Cho: Hypercorrelation Squeeze for Few-Shot Segmentation",
        venue="ICCV 2021",
        arxiv="2104.01538",
        encoders=("blocks_resnet50", "blocks_resnet101", "blocks_vgg16"),
        parity="golden cases: forward, five shots, training step, correlation, 4D convolution",
        weights_licence="none (the authors' repository has no licence file)",
    )
    published_keys = HSNET_KEYS
    head_keys = ("hpn_learner.",)
    frame = "square"
    default_size = 400

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] | None = None,
        size: int | None = None,
        *,
        fusion: Fusion = "vote",
        grid: Grid = "square",
        memory_mib: int = 256,
    ) -> None:
        super().__init__(encoder, layers, size, fusion, memory_mib)
        if grid not in ("square", "query"):
            raise expected("grid", "one of square, query", repr(grid))
        two, three, four = map(len, self.levels)
        self.hpn_learner = HypercorrelationLearner((two, three, four), grid)

    def support_of(self, maps: Mapping[str, Tensor], masks: Tensor) -> Task:
        """Mask the shots' maps; see StackedSegmenter.

        The Task holds a map (B, K, C, h, w) a layer, under its name, and "mask.<stride>"
        (B, K, h, w).
        """
        objects = (masks.flatten(0, 1) == 1).unsqueeze(1).to(maps[self.layers[0]].dtype)
        tensors = {}
        for stride, names in zip(STRIDES, self.levels, strict=True):
            grid = maps[names[0]].shape[-2:]
            soft = F.interpolate(objects, grid, mode="bilinear", align_corners=True)
            tensors[f"mask.{stride}"] = soft.squeeze(1)
            tensors |= {name: maps[name] * soft for name in names}
        return Task(self.method, apart(tensors, masks))

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from.

        With one shot, or fusion "mean", `logits` are the network's; else see `fused`.
        """
        tasks = self.checked_ways(task, features.batch)
        shots = self.shot_logits(features, tasks, output_size or features.size)
        return Prediction.from_pairs([self.fused(one) for one in shots])

    def logits_grid(self, features: Features, tasks: Sequence[Task]) -> tuple[int, int] | None:
        """The learner's, unless shots vote at every pixel; see FewShotSegmenter.logits_grid."""
        if self.fusion == "vote" and any(task.shots > 1 for task in tasks):
            return None
        height, width = map_of(features, self.levels[0][0]).shape[-2:]
        return self.hpn_learner.output_size(height, width)

    def shot_logits(
        self, features: Features, tasks: Sequence[Task], size: tuple[int, int]
    ) -> list[Tensor]:
        """For each task the logits (B, K, 2, H, W) of its shots, for queries of `encode`."""
        maps = {name: map_of(features, name) for name in self.layers}
        batch = features.batch
        supports = self.support_maps(tasks, maps, [f"mask.{stride}" for stride in STRIDES])
        count = supports[self.layers[0]].shape[1]
        together = self.together(
            self.correlation_bytes(maps, supports), on_cpu=maps[self.layers[0]].is_cpu
        )
        parts = []
        for start in range(0, count, together):
            part = {name: one[:, start : start + together] for name, one in supports.items()}
            taken = part[self.layers[0]].shape[1]
            low = self.match(
                maps if taken == 1 else self.repeated(maps, taken),
                {n: s.flatten(0, 1) for n, s in part.items()},
            )
            large = F.interpolate(low, size, mode="bilinear", align_corners=True)
            parts.append(large.unflatten(0, (batch, taken)))
        return list(torch.cat(parts, dim=1).split([one.shots for one in tasks], dim=1))

    def match(self, query: Mapping[str, Tensor], support: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, 2, 2h, 2w) of maps (B, C, h, w) with a task's, each without its shots."""
        logits: Tensor = self.hpn_learner(*self.level_pairs(query, support))
        return logits

    def level_pairs(
        self, query: Mapping[str, Tensor], support: Mapping[str, Tensor]
    ) -> list[Level]:
        """The maps of `match` by stride, fine to coarse."""
        return [
            Level([query[n] for n in names], [support[n] for n in names], support[f"mask.{stride}"])
            for stride, names in zip(STRIDES, self.levels, strict=True)
        ]

    def forward(self, images: Images, masks: Images, query: Tensor) -> Tensor:
        """The training forward, one shot: logits (B, 2, H, W) at the query's size."""
        task = self.encode_support(images, masks)
        if task.shots != 1:
            raise expected("images", "one shot an episode, as published", f"{task.shots} shots")
        features = self.encode(query)
        return self.shot_logits(features, [task], features.size)[0][:, 0]

    def loss(self, logits: Tensor, query_mask: Tensor) -> Tensor:
        """Cross-entropy over all pixels; 255 counts as background, as published.

        Args:
            logits: (B, 2, H, W).
            query_mask: (B, H, W) of {0, 1, 255}.
        """
        return F.cross_entropy(logits, (query_mask == 1).long())
