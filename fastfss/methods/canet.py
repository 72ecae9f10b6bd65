"""CANet: comparison with the support's prototype, refined iteratively.

Zhang, Lin, Liu, Yao, Shen: "CANet: Class-Agnostic Segmentation Networks with Iterative Refinement
and Attentive Few-Shot Learning", CVPR 2019, as implemented in lizhaoliu-Lec/DENet (ACM MM 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.aspp import RegASPP
from fastfss.methods.embedding import WIDTH, EmbeddingSegmenter, convolution, two_convolutions
from fastfss.methods.info import MethodInfo
from fastfss.ops import masked_average_pool
from fastfss.task import Task
from fastfss.weights import KeyMap

CANET_KEYS = KeyMap("CANet", (("backbone.", "encoder."),))
_EPS = 0.0005  # added to the area of a mask
_FUSE_RATE = 2  # dilation and padding of `fuse`


class CANet(EmbeddingSegmenter):
    """CANet: query features fused with one prototype a shot; the logits go round as a history.

    Args:
        encoder: the backbone; published with "dilated_resnet50" and "dilated_densenet121".
        layers: the feature maps to embed; published: layer2 and layer3.
        size: see FewShotSegmenter.
        refine_time: how many times the head runs, each time with its own logits of the time before.
        dropout: see EmbeddingSegmenter.
        batch_statistics: see EmbeddingSegmenter.
    """

    method = "canet"
    info = MethodInfo(
        title="CANet",
        paper="Zhang, Lin, Liu, Yao, Shen: CANet: Class-Agnostic Segmentation Networks with "
        "Iterative Refinement and Attentive Few-Shot Learning",
        venue="CVPR 2019",
        arxiv="1903.02351",
        encoders=("dilated_resnet50", "dilated_densenet121"),
        parity="six golden cases of lizhaoliu-Lec/DENet's implementation, which averages shots",
    )
    published_keys = CANET_KEYS
    head_keys = ("aspp.", "embedding.")

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("layer2", "layer3"),
        size: int | None = None,
        *,
        refine_time: int = 3,
        dropout: float = 0.5,
        batch_statistics: bool = True,
    ) -> None:
        super().__init__(encoder, layers, size, dropout=dropout, batch_statistics=batch_statistics)
        if refine_time < 1:
            raise expected("refine_time", "a positive number", str(refine_time))
        self.refine_time = refine_time
        self.fuse = nn.Sequential(
            convolution(2 * WIDTH, WIDTH, _FUSE_RATE), nn.ReLU(inplace=True), nn.Dropout2d(dropout)
        )
        self.fuse_history = two_convolutions(WIDTH + 2)
        self.residual1 = two_convolutions()
        self.residual2 = two_convolutions()
        self.aspp = RegASPP(WIDTH, dropout)
        self.classifier = nn.Conv2d(WIDTH, 2, 1)

    def support_of(self, maps: Mapping[str, Tensor], masks: Tensor) -> Task:
        """Make prototypes; see StackedSegmenter.

        The Task holds "prototype", (B, K, 256): the mean of the embedded maps under the mask.
        """
        objects = (masks == 1).flatten(0, 1).unsqueeze(1)
        prototypes = masked_average_pool(maps["embedded"], objects, eps=_EPS)
        return Task(self.method, {"prototype": prototypes.view(*masks.shape[:2], WIDTH)})

    def head(self, features: Tensor, tasks: Sequence[Task]) -> Tensor:
        """Logits (B, W, 2, h, w): of each way the mean over its shots, all computed together."""
        prototypes = torch.cat(
            [self.support_tensor(task, "prototype", features) for task in tasks], dim=1
        )
        fused = self.fused(features, prototypes)
        logits = self.refined(fused)[-1].unflatten(0, prototypes.shape[:2])
        ways = logits.split([task.shots for task in tasks], dim=1)
        return torch.stack([way.mean(dim=1) for way in ways], dim=1)

    def fused(
        self,
        features: Tensor,  # (B, 256, h, w)
        prototypes: Tensor,  # (B, K, 256)
    ) -> Tensor:  # (B * K, 256, h, w)
        """`fuse` of each query with each of its prototypes, spread over the map.

        The weight is split: the query's half is computed once for all prototypes. A spread
        prototype is the same everywhere but at the padding, so of its half there are nine products
        (256, 9), one a tap, added up over the taps that fall inside the map.
        """
        convolution, *after = self.fuse
        assert isinstance(convolution, nn.Conv2d)
        of_query, of_prototype = convolution.weight.split(WIDTH, dim=1)
        query = F.conv2d(
            features, of_query, convolution.bias, padding=_FUSE_RATE, dilation=_FUSE_RATE
        )
        taps = torch.einsum("bkc,ocij->bkoij", prototypes, of_prototype)
        rows, columns = (_taps_inside(size, features) for size in features.shape[2:])
        fused = (query.unsqueeze(1) + rows @ taps @ columns.T).flatten(0, 1)
        if query.is_contiguous(memory_format=torch.channels_last):
            fused = fused.contiguous(memory_format=torch.channels_last)
        for part in after:
            fused = part(fused)
        return fused

    def refined(
        self,
        fused: Tensor,  # (B, 256, h, w)
    ) -> list[Tensor]:  # refine_time times (B, 2, h, w)
        """The logits after each refinement.

        The history enters `fuse_history` as two further channels, zero the first time: what its
        convolution makes of the others is computed once.
        """
        first, _, second = self.fuse_history
        assert isinstance(first, nn.Conv2d)
        of_fused, of_history = first.weight.split([WIDTH, 2], dim=1)
        without_history = F.conv2d(fused, of_fused, first.bias, padding=1)
        steps: list[Tensor] = []
        for _ in range(self.refine_time):
            x = without_history
            if steps:
                x = x + F.conv2d(steps[-1], of_history, padding=1)
            x = F.relu(second(F.relu(x)) + fused)
            x = F.relu(x + self.residual1(x))
            x = F.relu(x + self.residual2(x))
            steps.append(self.classifier(self.aspp(x)))
        return steps


def _taps_inside(size: int, like: Tensor) -> Tensor:
    """(size, 3): 1 where a tap of `fuse` at a position of a row or column is inside the map."""
    positions = torch.arange(size, device=like.device)
    at = positions[:, None] + _FUSE_RATE * torch.arange(-1, 2, device=like.device)
    return ((at >= 0) & (at < size)).to(like.dtype)
