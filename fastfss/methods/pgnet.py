"""PGNet: graph attention from the query to the support at several scales.

Zhang, Lin, Liu, Guo, Wu, Yao: "Pyramid Graph Networks with Connection Attentions for Region-Based
One-Shot Semantic Segmentation", ICCV 2019, as implemented in lizhaoliu-Lec/DENet (ACM MM 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders import Encoder
from fastfss.methods.aspp import RegASPP
from fastfss.methods.embedding import WIDTH, EmbeddingSegmenter, two_convolutions
from fastfss.methods.graph_attention import GraphAttention, as_rows, uniform_attention
from fastfss.methods.info import MethodInfo
from fastfss.methods.stacked import apart
from fastfss.ops import dense_match
from fastfss.task import Task
from fastfss.weights import KeyMap

PGNET_KEYS = KeyMap("PGNet", (("backbone.", "encoder."),))
_OFFSET = 0.0005  # added to every element of the masked support


class PGNet(EmbeddingSegmenter):
    """PGNet: the masked support's values, averaged for every query position by attention.

    Args:
        encoder: the backbone; published with "dilated_resnet50" and "dilated_densenet121".
        layers: the feature maps to embed; published: layer2 and layer3.
        size: see FewShotSegmenter.
        transpose_attention: whether the attention's result, a vector of channels a position, is
            put at its position. The published code reads that memory as maps of channels instead,
            and its weights are trained so.
        uniform_mean: whether the fourth unit, which weighs all support positions alike, gives
            their mean. The published code gives their sum over K shots.
        dropout: see EmbeddingSegmenter.
        batch_statistics: see EmbeddingSegmenter.
    """

    method = "pgnet"
    info = MethodInfo(
        title="PGNet",
        paper="Zhang, Lin, Liu, Guo, Wu, Yao: Pyramid Graph Networks with Connection Attentions "
        "for Region-Based One-Shot Semantic Segmentation",
        venue="ICCV 2019",
        arxiv="",
        encoders=("dilated_resnet50", "dilated_densenet121"),
        parity="four golden cases of lizhaoliu-Lec/DENet's implementation",
    )
    published_keys = PGNET_KEYS
    head_keys = ("aspp.", "embedding.")

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("layer2", "layer3"),
        size: int | None = None,
        *,
        transpose_attention: bool = False,
        uniform_mean: bool = False,
        dropout: float = 0.5,
        batch_statistics: bool = True,
    ) -> None:
        super().__init__(encoder, layers, size, dropout=dropout, batch_statistics=batch_statistics)
        self.transpose_attention = transpose_attention
        self.uniform_mean = uniform_mean
        self.g = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(inplace=True))
        self.gau_1 = GraphAttention(WIDTH)
        self.gau_2 = GraphAttention(WIDTH)
        self.gau_3 = GraphAttention(WIDTH)
        self.gau_4 = GraphAttention(WIDTH)
        self.residual1 = two_convolutions()
        self.residual2 = two_convolutions()
        self.residual3 = two_convolutions()
        self.aspp = RegASPP(WIDTH, dropout)
        self.classifier = nn.Conv2d(WIDTH, 2, 1)

    def support_of(self, maps: Mapping[str, Tensor], masks: Tensor) -> Task:
        """Mask the shots' maps; see StackedSegmenter.

        The masked map is the same vector at every position outside of the object, and so is what
        attention reads there. Those positions stand in one further row, the last, with their
        number as its weight.

        The Task holds, of h * w positions and that row: "key" (B, K, h * w + 1, 256), the masked
        map; "value", likewise, `g` of it; "weight" (B, K, h * w + 1), how often each row counts.
        """
        features = maps["embedded"]
        objects = (masks == 1).flatten(0, 1).unsqueeze(1).to(features.dtype)
        inside = as_rows(F.interpolate(objects, features.shape[2:], mode="nearest"))
        outside = features.new_zeros(features.shape[0], 1, WIDTH)
        key = torch.cat([as_rows(features) * inside, outside], dim=1) + _OFFSET
        convolution, relu = self.g
        assert isinstance(convolution, nn.Conv2d)
        value = relu(F.linear(key, convolution.weight.flatten(1), convolution.bias))
        weight = inside.squeeze(2).float()
        others = weight.shape[1] - weight.sum(dim=1, keepdim=True)
        tensors = {"key": key, "value": value, "weight": torch.cat([weight, others], dim=1)}
        return Task(self.method, apart(tensors, masks))

    def head(self, features: Tensor, tasks: Sequence[Task]) -> Tensor:
        """Logits (B, W, 2, h, w), each way for itself."""
        maps = self.graph_maps(features, tasks)
        size = (features.shape[2], features.shape[3])
        x = maps[2] + maps[3]
        for small in maps[:2]:
            x = x + F.interpolate(small, size, mode="bilinear", align_corners=False)
        for residual in (self.residual1, self.residual2, self.residual3):
            x = F.relu(x + residual(x))
        logits: Tensor = self.classifier(self.aspp(x))
        return logits.view(features.shape[0], len(tasks), *logits.shape[1:])

    def graph_maps(self, features: Tensor, tasks: Sequence[Task]) -> list[Tensor]:
        """What the four units give: (B * W, 256, h', w') each, at a quarter, half and full size."""
        height, width = features.shape[2:]
        # A tiny image keeps one position a side, where the published code has none and fails.
        sizes = [(max(1, height // n), max(1, width // n)) for n in (4, 2)]
        pyramid, own = (
            [*(F.adaptive_avg_pool2d(maps, size) for size in sizes), maps, maps]
            for maps in (features, self.g(features))
        )
        # A loop, since the ways may differ in their numbers of shots.
        ways = [self.attended(pyramid, task) for task in tasks]
        return [
            unit(torch.stack(attended, dim=1), one)
            for unit, attended, one in zip(self.units, zip(*ways, strict=True), own, strict=True)
        ]

    @property
    def units(self) -> tuple[GraphAttention, ...]:
        """The four graph attention units."""
        return (self.gau_1, self.gau_2, self.gau_3, self.gau_4)

    def attended(self, pyramid: Sequence[Tensor], task: Task) -> list[Tensor]:
        """What each unit reads from the support, as maps (B, 256, h', w').

        Args:
            pyramid: the query's maps (B, 256, h', w'), one a unit.
            task: one way; all its shots are in one softmax.
        """
        key, value = (self.support_tensor(task, name, pyramid[0]) for name in ("key", "value"))
        weight = task.tensors["weight"].float().expand(*key.shape[:3])
        # h * w of the support, without the row that stands for others.
        share = 1 / (key.shape[2] - 1) / (task.shots if self.uniform_mean else 1)
        key, value, weight = key.flatten(1, 2), value.flatten(1, 2), weight.flatten(1, 2)
        matched, uniform = self.units[:3], self.units[3]
        if self.training:
            rows = [
                _match(unit.queries(maps), unit.keys(key), value, weight)
                for unit, maps in zip(matched, pyramid, strict=False)
            ]
            last, counts = uniform.queries(pyramid[3]), weight.to(value.dtype)
            rows.append(uniform_attention(last, uniform.keys(key), value, counts, share))
        else:
            queries = [
                unit.queries_for_bare_keys(maps)
                for unit, maps in zip(matched, pyramid, strict=False)
            ]
            together = _match(torch.cat(queries, dim=1), key, value, weight)
            rows = list(together.split([one.shape[1] for one in queries], dim=1))
            wide = torch.promote_types(value.dtype, torch.float32)
            total = share * (weight.to(wide).unsqueeze(1) @ value.to(wide))
            rows.append(total.to(value.dtype).expand(-1, queries[2].shape[1], -1))
        return [self._as_maps(one, maps) for one, maps in zip(rows, pyramid, strict=True)]

    def _as_maps(
        self,
        rows: Tensor,  # (B, h * w, 256)
        like: Tensor,  # (B, 256, h, w)
    ) -> Tensor:  # (B, 256, h, w)
        if self.transpose_attention:
            return rows.transpose(1, 2).view(like.shape)
        return rows.reshape(like.shape)


def _match(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """softmax(q k^T) v of (B, positions, channels), each key counted `weight` (B, M) times."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return dense_match(q, k, v, weight, normalize=False).transpose(1, 2)
