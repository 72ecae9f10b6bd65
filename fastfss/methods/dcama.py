"""DCAMA: the query's mask as the support's mask, carried over by dense cross attention.

Shi, Wei, Zhang, Lu, Ning, Chen, Ma, Zheng: "Dense Cross-Query-and-Support Attention Weighted Mask
Aggregation for Few-Shot Segmentation", ECCV 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders import Encoder
from fastfss.encoders.pointwise import pointwise
from fastfss.errors import expected
from fastfss.methods.features import Features, map_of
from fastfss.methods.info import MethodInfo
from fastfss.methods.memo import TensorMemo
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images
from fastfss.methods.stacked import StackedSegmenter, apart
from fastfss.ops import dense_match
from fastfss.task import Task
from fastfss.weights import KeyMap

HEADS = 8
SKIP_STRIDE = 4
STRIDES = (8, 16, 32)  # of the maps that attend, shallow to deep

DCAMA_KEYS = KeyMap("DCAMA", (("feature_extractor.", "encoder."),))


@dataclass(frozen=True)
class Stage:
    """The maps of one stride, shallow to deep, and their channels."""

    stride: int
    layers: tuple[str, ...]
    channels: int


class DCAMA(StackedSegmenter):
    """DCAMA: attention of every query position over all support pixels, with the mask as value.

    The backbone stays as ImageNet made it. The shots of a task share one softmax.

    Args:
        encoder: published with "blocks_resnet50", "blocks_resnet101" and "blocks_swin_b"; others
            need maps at strides 4, 8, 16 and 32, those of one stride with equal channels.
        layers: the maps to use; all of those strides by default.
        size: both sides to which `fit` and `predict` bring images; published: 384.
        dropout: of tokens and of attention weights in training.
    """

    method = "dcama"
    info = MethodInfo(
        title="DCAMA",
        paper="Shi, Wei, Zhang, Lu, Ning, Chen, Ma, Zheng: Dense Cross-Query-and-Support Attention "
        "Weighted Mask Aggregation for Few-Shot Segmentation",
        venue="ECCV 2022",
        arxiv="2207.08549",
        encoders=("blocks_resnet50", "blocks_resnet101", "blocks_swin_b"),
        parity="five golden cases: forward of three backbones, five shots, a training step",
    )
    published_keys = DCAMA_KEYS
    head_keys = ("model.",)
    # Tables that are computed.
    ignored_keys = ("model.pe.*",)
    frame = "square"
    default_size = 384

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] | None = None,
        size: int | None = None,
        *,
        dropout: float = 0.5,
    ) -> None:
        strides = (SKIP_STRIDE, *STRIDES)
        if layers is None:
            layers = [one.name for one in encoder.features if one.stride in strides]
        super().__init__(encoder, layers, size)
        if not 0 <= dropout < 1:
            raise expected("dropout", "0 <= dropout < 1", str(dropout))
        infos = [encoder.info(layer) for layer in self.layers]
        stages = []
        for stride in strides:
            members = [one for one in infos if one.stride == stride]
            widths = {one.channels for one in members}
            if len(widths) != 1:
                wanted = f"maps of {encoder.name} at stride {stride}, of equal channels"
                came = ", ".join(f"{one.name} ({one.stride})" for one in infos)
                raise expected("layers", wanted, came)
            stages.append(Stage(stride, tuple(one.name for one in members), widths.pop()))
        self.skip_stage, *attending = stages
        self.stages = tuple(attending)
        # The last map of each of the two finest strides goes to the decoder as it is.
        self.skips = (self.stages[0].layers[-1], self.skip_stage.layers[-1])
        self.model = MaskAggregation(self.stages, self.skip_stage.channels, dropout)
        self._memo = TensorMemo()
        encoder.requires_grad_(False)

    @property
    def map_names(self) -> Sequence[str]:
        """See StackedSegmenter."""
        return (self.skips[1], *(name for stage in self.stages for name in stage.layers))

    def support_of(self, maps: Mapping[str, Tensor], masks: Tensor) -> Task:
        """Make attention keys; see StackedSegmenter.

        The Task holds for each attending layer "key.<layer>"
        (B, K, C, h, w), for each stride "mask.<stride>" (B, K, h, w), and the decoder's
        "skip.<layer>" (B, K, C, h, w).
        """
        objects = (masks.flatten(0, 1) == 1).unsqueeze(1).to(maps[self.skips[1]].dtype)
        tensors = {f"skip.{name}": maps[name] for name in self.skips}
        for stage, block in zip(self.stages, self.model.blocks, strict=True):
            grid = maps[stage.layers[0]].shape[-2:]
            resized = F.interpolate(objects, grid, mode="bilinear", align_corners=True)
            tensors[f"mask.{stage.stride}"] = resized.squeeze(1)
            keys = block.project([maps[name] for name in stage.layers], 1)
            tensors |= {f"key.{n}": one for n, one in zip(stage.layers, keys, strict=True)}
        return Task(self.method, apart(tensors, masks))

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from."""
        tasks = self.checked_ways(task, features.batch)
        size = output_size or features.size
        maps = {name: map_of(features, name) for name in self.map_names}
        queries = self.queries(maps)
        of_query = self.model.skipped([maps[name] for name in self.skips], 0)
        logits = [
            self.model(self.coarse_masks(queries, one), of_query + self._skipped(one))
            for one in tasks
        ]
        if logits[0].shape[-2:] != size:
            logits = [
                F.interpolate(one, size, mode="bilinear", align_corners=True) for one in logits
            ]
        return Prediction.from_pairs(logits)

    def logits_grid(self, features: Features, tasks: Sequence[Task]) -> tuple[int, int]:
        """Four times that of stride 4, which is the image's; see FewShotSegmenter.logits_grid."""
        height, width = map_of(features, self.skips[1]).shape[-2:]
        return 4 * height, 4 * width

    def queries(self, maps: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """The projected queries of each stage, L of (B, C, h, w)."""
        return [
            block.project([maps[name] for name in stage.layers], 0)
            for stage, block in zip(self.stages, self.model.blocks, strict=True)
        ]

    def coarse_masks(self, queries: Sequence[Sequence[Tensor]], task: Task) -> list[Tensor]:
        """The aggregated masks (B, L, h, w) of each stage."""
        batch, dtype = queries[0][0].shape[0], queries[0][0].dtype
        coarse = []
        for stage, block, query in zip(self.stages, self.model.blocks, queries, strict=True):
            names = [f"key.{name}" for name in stage.layers]
            for name in names:
                if name not in task.tensors or task.tensors[name].shape[2] != stage.channels:
                    came = ", ".join(f"{k} {tuple(v.shape)}" for k, v in task.tensors.items())
                    raise expected("task", f"{name} (B, K, {stage.channels}, h, w)", came)
            # One softmax over the positions of all shots.
            keys = [task.tensors[name].to(dtype).transpose(1, 2).flatten(2) for name in names]
            values = task.tensors[f"mask.{stage.stride}"].to(dtype).flatten(1)
            expanded = [one.expand(batch, -1, -1) for one in keys]
            coarse.append(block(query, expanded, values.expand(batch, -1)))
        return coarse

    def _skipped(self, task: Task) -> Tensor:
        """What a task's own maps add to the decoder; without gradients on a CPU computed once.

        A GPU's graph reads tasks where they lie, changed ones too.
        """
        weight = self.model.mixing.weight
        sources = [*(task.tensors[f"skip.{name}"] for name in self.skips), weight]
        keep = sources[0].device.type == "cpu" and not torch.is_grad_enabled()
        keep = keep and not torch.compiler.is_compiling()
        found = self._memo.get(sources, None) if keep else None
        if found is None or (found.is_inference() and not torch.is_inference_mode_enabled()):
            # Of several shots the decoder sees the largest value at each position.
            kept = [one.to(weight.dtype) for one in sources[:-1]]
            largest = [one[:, 0] if one.shape[1] == 1 else one.amax(dim=1) for one in kept]
            found = self.model.skipped(largest, 1)
            if keep:
                self._memo.put(sources, None, found)
        return found

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The maps that are used, without gradient: the backbone is never trained."""
        with torch.no_grad():
            maps: dict[str, Tensor] = self.encoder(images, self.map_names)
        return maps

    def forward(self, images: Images, masks: Images, query: Tensor) -> Tensor:
        """The training forward: logits (B, 2, H, W); arguments as in encode_support and segment."""
        return self.segment(query, self.encode_support(images, masks)).logits

    def loss(self, logits: Tensor, query_mask: Tensor) -> Tensor:
        """Cross-entropy over all pixels; 255 counts as background, as published.

        Args:
            logits: (B, 2, H, W).
            query_mask: (B, H, W) of {0, 1, 255}.
        """
        return F.cross_entropy(logits, (query_mask == 1).long())


class MaskAttention(nn.Module):
    """A = softmax(Q K^T / sqrt(d)) per head; the mean over heads of A times the support's mask.

    Shared by all maps of a stage. `linears` holds the projections of query and key; there is none
    of the value and none of the output.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(channels, channels) for _ in range(2))
        self.dropout = dropout

    def project(
        self,
        maps: Sequence[Tensor],  # L of (B, C, h, w)
        side: int,
    ) -> list[Tensor]:  # L of (B, C, h, w)
        """Queries (side 0) or keys (side 1)."""
        linear = self.linears[side]
        assert isinstance(linear, nn.Linear)
        tokens = torch.cat(list(maps))
        channels, *grid = tokens.shape[1:]
        table = position_table(channels, math.prod(grid), like=tokens).view(1, channels, *grid)
        tokens += torch.empty_like(tokens[:1]).copy_(table)  # in the tokens' order in memory
        tokens = F.dropout(tokens, self.dropout, self.training)
        if tokens.is_cpu:
            projected = pointwise(tokens, linear.weight[:, :, None, None], linear.bias)
        else:  # as a convolution it would be one of TF32
            projected = torch.matmul(linear.weight, tokens.flatten(2)) + linear.bias[:, None]
        return list(projected.view(tokens.shape).chunk(len(maps)))

    def forward(
        self,
        query: Sequence[Tensor],  # L of (B, C, h, w)
        key: Sequence[Tensor],  # L of (B, C, M), M the positions of all shots
        value: Tensor,  # (B, M)
    ) -> Tensor:  # (B, L, h, w)
        """Aggregate the mask."""
        layers = len(query)
        batch, channels, height, width = query[0].shape
        q, k = _heads([one.flatten(2) for one in query]), _heads(key)
        scale = (channels // HEADS) ** -0.5
        v = value.repeat_interleave(HEADS, dim=0).repeat(layers, 1)
        if self.training and self.dropout > 0:
            attention = F.dropout((scale * q.transpose(1, 2) @ k).softmax(dim=2), self.dropout)
            weighted = (attention @ v.unsqueeze(2)).squeeze(2)
        else:
            weighted = dense_match(q, k, v.unsqueeze(1), scale=scale, normalize=False).squeeze(1)
        return weighted.view(layers, batch, HEADS, height, width).mean(dim=2).transpose(0, 1)


def _heads(
    maps: Sequence[Tensor],  # L of (B, C, N)
) -> Tensor:  # (L B HEADS, C / HEADS, N)
    """One batch of all heads, in the maps' order in memory: a copy across it takes ten times."""
    heads = [one.unflatten(1, (HEADS, -1)) for one in maps]
    if all(one.stride(2) == 1 for one in heads):
        return torch.cat([one.transpose(2, 3).flatten(0, 1) for one in heads]).transpose(1, 2)
    return torch.cat([one.flatten(0, 1) for one in heads])


class MaskAggregation(nn.Module):
    """Attention blocks and decoder; attribute names are the published keys'.

    Args:
        stages: of the attending maps, shallow to deep.
        skip_channels: of the map of stride 4.
        dropout: see DCAMA.
    """

    def __init__(self, stages: Sequence[Stage], skip_channels: int, dropout: float) -> None:
        super().__init__()
        for stage in stages:
            if stage.channels % HEADS:
                came = f"{stage.channels} at stride {stage.stride}"
                raise expected("encoder", f"maps with a multiple of {HEADS} channels", came)
        self.DCAMA_blocks = nn.ModuleList(MaskAttention(s.channels, dropout) for s in stages)
        two, three, four = (len(stage.layers) for stage in stages)
        self.conv1 = _conv_block(four, (16, 64, 128), (3, 3, 3))
        self.conv2 = _conv_block(three, (16, 64, 128), (5, 3, 3))
        self.conv3 = _conv_block(two, (16, 64, 128), (5, 5, 3))
        self.conv4 = _conv_block(128, (128, 128, 128), (3, 3, 3))
        self.conv5 = _conv_block(128, (128, 128, 128), (3, 3, 3))
        inputs = 128 + 2 * stages[0].channels + 2 * skip_channels
        self.mixer1 = _mixer(inputs, 128, 64, last_relu=True)
        self.mixer2 = _mixer(64, 64, 16, last_relu=True)
        self.mixer3 = _mixer(16, 16, 2, last_relu=False)

    @property
    def blocks(self) -> list[MaskAttention]:
        """The attention of each stage."""
        return [block for block in self.DCAMA_blocks if isinstance(block, MaskAttention)]

    @property
    def mixing(self) -> nn.Conv2d:
        """The first convolution of all maps together, which has nearly all of the decoder's work.

        It is a sum over maps: those of the query and of the support can be taken apart, and what
        stays the same computed once.
        """
        conv = self.mixer1[0]
        assert isinstance(conv, nn.Conv2d)
        return conv

    def skipped(
        self,
        skips: Sequence[Tensor],  # (B, C, h, w) of strides 8 and 4
        side: int,
    ) -> Tensor:  # (B, 128, h, w) of stride 4
        """What an image's maps add to `mixing`: the query's (side 0) or the support's (1)."""
        fine, finest = skips
        weight = self.mixing.weight
        second = weight.shape[1] - (2 - side) * finest.shape[1]
        first = weight.shape[1] - 2 * finest.shape[1] - (2 - side) * fine.shape[1]
        fine = _enlarged(fine, finest.shape[-2:])
        added = F.conv2d(fine, weight[:, first : first + fine.shape[1]], padding=1)
        added += F.conv2d(finest, weight[:, second : second + finest.shape[1]], padding=1)
        return added

    def forward(
        self,
        coarse: Sequence[Tensor],  # (B, L, h, w) of strides 8, 16, 32
        skipped: Tensor,  # (B, 128, h, w) of stride 4, of both sides
    ) -> Tensor:  # (B, 2, 4h, 4w)
        """Decode the coarse masks, deep to shallow."""
        two, three, four = coarse
        y = self.conv1(four)
        y = self.conv4(_resize(y, three.shape[-2:]) + self.conv2(three))
        y = self.conv5(_resize(y, two.shape[-2:]) + self.conv3(two))
        y = _enlarged(y, skipped.shape[-2:])
        mixed = F.conv2d(y, self.mixing.weight[:, : y.shape[1]], self.mixing.bias, padding=1)
        y = self.mixer1[1:](mixed.add_(skipped))
        logits: Tensor = self.mixer3(_double(self.mixer2(_double(y))))
        return logits


def position_table(channels: int, positions: int, *, like: Tensor) -> Tensor:
    """(C, N): sin(p 10000^(-2i/C)) in row 2i and its cosine in row 2i + 1, for the flat index p."""
    place = torch.arange(positions, device=like.device, dtype=torch.float32)
    even = torch.arange(0, channels, 2, device=like.device, dtype=torch.float32)
    angles = (even * (-torch.log(torch.tensor(10000.0)) / channels)).exp()[:, None] * place
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1).to(like.dtype)


def _conv_block(inputs: int, widths: Sequence[int], kernels: Sequence[int]) -> nn.Sequential:
    """Convolution, group norm and ReLU, three times."""
    parts: list[nn.Module] = []
    for width, kernel in zip(widths, kernels, strict=True):
        parts += [
            nn.Conv2d(inputs, width, kernel, padding=kernel // 2),
            nn.GroupNorm(4, width),
            nn.ReLU(inplace=True),
        ]
        inputs = width
    return nn.Sequential(*parts)


def _mixer(inputs: int, middle: int, outputs: int, *, last_relu: bool) -> nn.Sequential:
    parts = [
        nn.Conv2d(inputs, middle, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*(parts if last_relu else parts[:-1]))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def _double(x: Tensor) -> Tensor:
    return _resize(x, (2 * x.shape[2], 2 * x.shape[3]))


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """From stride 8 to the grid of stride 4: doubled, and resized where that is not it."""
    x = _double(x)
    return x if x.shape[-2:] == tuple(size) else _resize(x, size)
