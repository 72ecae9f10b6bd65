"""IMR-HSNet: HSNet without masks; activation maps of two images refine each other.

Wang et al.: "Iterative Few-shot Semantic Segmentation from Image Label Text", IJCAI 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.annotation import SupportMask
from fastfss.data import ImageLike
from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder
from fastfss.encoders.pointwise import pointwise
from fastfss.errors import expected
from fastfss.methods.features import Features, map_of
from fastfss.methods.hypercorrelation import HypercorrelationEncoder, decoders
from fastfss.methods.info import MethodInfo
from fastfss.methods.level_pyramid import Fusion, LevelPyramid
from fastfss.methods.mutual_level import MutualLevel
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images
from fastfss.methods.stacked import apart
from fastfss.result import Result
from fastfss.task import Task
from fastfss.text import Label
from fastfss.text.labels import check_found
from fastfss.weights import KeyMap

QueryMap = Literal["given", "uniform"]
# (image, labels) -> maps: of uint8 (3, H, W) and N labels, (N, h, w) in [0, 1].
LabelMaps = Callable[[Tensor, Sequence[str]], Tensor]
WIDTH, MIDDLE = 128, 512  # channels of the state, and of the middle features
STATE_GRID = 50

IMR_KEYS = KeyMap("IMR-HSNet", (("backbone.features.", "encoder.body."), ("backbone.", "encoder.")))


@dataclass(frozen=True, eq=False)
class IMROutput:
    """What the training forward returns: logits (B, 2, H, W) of every stage.

    Attributes:
        query: of the queries.
        support: of the supports.
    """

    query: Sequence[Tensor]
    support: Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of the refinement; the first half of each batch are the queries of P pairs.

    Attributes:
        encoded: (2 P, 128, h, w), what the 4D encoder makes of the correlations.
        state: (2 P, 128, h, w), the recurrent state after the stage.
        logits: (2 P, 2, 2h, 2w).
    """

    encoded: Tensor
    state: Tensor
    logits: Tensor


class IMRHSNet(LevelPyramid):
    """IMR-HSNet: a recurrent unit on HSNet's 4D encoder refines a map of the query and the support.

    Neither image has a mask: each has a coarse activation map of the class's label, by CLIP as
    published. Supports and queries are treated alike, with shared weights.

    Args:
        encoder: published with "blocks_vgg16" and "blocks_resnet50"; others need maps at strides 8,
            16 and 32, those at 16 of equal channels.
        layers: the maps to correlate; all of those strides by default.
        size: both sides to which `fit` and `predict` bring images; published: 400. The state that
            the network starts from is learned for 400 and resized for others.
        stages: how often the maps are refined; published: 2 for PASCAL, 3 for COCO.
        query_map: "given": every query needs its map, as published; "uniform": a query without
            one gets ones, for support masks without a label. The method was not trained for that.
        fusion: of several shots, as in HSNet.
        memory_mib: how much memory the correlations of the shots and ways that are segmented
            together may take; at least one is.

    Attributes:
        label_maps: a function that makes the activation maps (N, h, w) of N labels in an image,
            uint8 (3, H, W); `predict` asks it for those of the tasks' names. None at
            first: `text` is asked then, if there is one.
    """

    method = "imr-hsnet"
    info = MethodInfo(
        title="IMR-HSNet",
        paper="Wang et al.: Iterative Few-shot Semantic Segmentation from Image Label Text",
        venue="IJCAI 2022",
        arxiv="",
        encoders=("blocks_resnet50", "blocks_vgg16"),
        parity="five golden cases: every stage of two backbones, three shots, training steps",
        supports=("label",),
        weights_licence="none (the authors' repository has no licence file)",
    )
    published_keys = IMR_KEYS
    head_keys = (
        *("hpn_learner.", "state", "conv1024_512.", "convz", "convr", "convh"),
        *("decoder1.", "decoder2.", "res."),
    )
    frame = "square"
    default_size = 400

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] | None = None,
        size: int | None = None,
        *,
        stages: int = 2,
        query_map: QueryMap = "given",
        fusion: Fusion = "vote",
        memory_mib: int = 256,
    ) -> None:
        super().__init__(encoder, layers, size, fusion, memory_mib)
        if stages < 1:
            raise expected("stages", "at least 1", str(stages))
        if query_map not in ("given", "uniform"):
            raise expected("query_map", "one of given, uniform", repr(query_map))
        self.stages, self.query_map = stages, query_map
        self.label_maps: LabelMaps | None = None
        widths = {encoder.info(name).channels for name in self.levels[1]}
        if len(widths) != 1:
            came = ", ".join(map(str, sorted(widths)))
            raise expected("layers", "maps of equal channels at stride 16", came)
        two, three, four = map(len, self.levels)
        self.hpn_learner = HypercorrelationEncoder((two, three, four))
        self.state = nn.Parameter(torch.zeros(1, WIDTH, STATE_GRID, STATE_GRID))
        if widths != {MIDDLE}:
            self.conv1024_512 = nn.Conv2d(widths.pop(), MIDDLE, 1)
        for gate in "zrh":
            self.add_module(f"conv{gate}0", nn.Conv2d(1 + MIDDLE + 2 * WIDTH, 512, 1))
            for half in (1, 2):
                self.add_module(f"conv{gate}{half}", nn.Conv2d(256, 64, 3, padding=1, groups=8))
        self.decoder1, self.decoder2 = decoders()
        self.res = nn.Sequential(nn.Conv2d(3, 10, 1), nn.GELU(), nn.Conv2d(10, 2, 1))

    def support_of(self, maps: Mapping[str, Tensor], masks: Tensor) -> Task:
        """Keep the shots' maps; see StackedSegmenter.

        The Task holds a map (B, K, C, h, w) a layer, under its name, not masked; "middle"
        (B, K, 512, h, w), and "map" (B, K, h, w) at the finest grid.

        Args:
            maps: as in StackedSegmenter.
            masks: activation maps of the label, (B, K, h, w) in [0, 1], of any size; or masks of
                {0, 1, 255}, of which 1 counts as activation.
        """
        tensors = {
            **maps,
            "middle": self.middle(maps),
            "map": self._on_grid(masks.flatten(0, 1).unsqueeze(1), maps).squeeze(1),
        }
        return Task(self.method, apart(tensors, masks))

    def segment(
        self,
        query: Tensor,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
        *,
        query_map: Tensor | None = None,
    ) -> Prediction:
        """Segment query images; see FewShotSegmenter.segment.

        Args:
            query: as in FewShotSegmenter.
            task: likewise.
            output_size: likewise.
            query_map: (B, N, h, w) in [0, 1], of any size: the activation map of each task's label.

        Raises:
            ValueError: as in FewShotSegmenter, and without a `query_map` unless the model was made
                with query_map="uniform".
        """
        tasks = self.ways_of(query, task)
        return self.segment_from(self.encode(query), tasks, output_size, query_map=query_map)

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
        *,
        query_map: Tensor | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from, and `segment`."""
        tasks = self.checked_ways(task, features.batch)
        shots = self.shot_logits(features, tasks, output_size or features.size, query_map)
        return Prediction.from_pairs([self.fused(one) for one in shots])

    @torch.no_grad()
    def predict(
        self,
        query: ImageLike,
        task: Task | Sequence[Task],
        *,
        query_map: Tensor | np.ndarray | None = None,
    ) -> Result:
        """Segment one image of any size; see FewShotSegmenter.predict.

        Args:
            query: as in FewShotSegmenter.
            task: likewise.
            query_map: (N, h, w) in [0, 1], of any size: the activation map of each task's label in
                the whole image, or (h, w) for one task; by default what `label_maps` makes.

        Raises:
            ValueError: as in FewShotSegmenter and `segment`.
        """
        self._warn_if_random()

        def segmenter(image: Tensor, tasks: Sequence[Task]) -> Callable[..., Prediction]:
            maps = query_map
            label_maps = self.label_maps or self.text
            if maps is None and label_maps is not None:
                maps = label_maps(image, [one.name for one in tasks])
            if maps is not None:
                maps = torch.as_tensor(maps, device=self.device)
                maps = maps.view(1, *((1,) if maps.ndim == 2 else ()), *maps.shape)
            return partial(self._found_alone, query_map=maps)

        return self._predicted(query, task, segmenter)

    def _found_alone(
        self,
        query: Tensor,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
        *,
        query_map: Tensor | None,
    ) -> Prediction:
        """`segment`, but a way whose map is 0 everywhere is nowhere: its label was not found."""
        prediction = self.segment(query, task, output_size, query_map=query_map)
        if query_map is None:
            return prediction
        nowhere = ~(query_map > 0).any(dim=3).any(dim=2)[:, :, None, None]  # (B, N, 1, 1)
        background, ways = prediction.logits[:, :1], prediction.logits[:, 1:]
        return Prediction(
            torch.cat([background, ways.masked_fill(nowhere, -torch.inf)], dim=1),
            prediction.margins.masked_fill(nowhere, -torch.inf),
        )

    @property
    def reads_labels(self) -> bool:
        """Whether `fit` takes labels: there is `text` or `label_maps`."""
        return self.text is not None or self.label_maps is not None

    def name_of(
        self, shots: Sequence[tuple[ImageLike, SupportMask | Label]], name: str | None
    ) -> str:
        """See FewShotSegmenter.name_of; a label cannot have another name.

        Raises:
            ValueError: it has.
        """
        label = super().name_of(shots, None)
        labelled = any(self.label_of(mask) is not None for _, mask in shots)
        if labelled and name not in (None, label):
            wanted = f"the label {label!r}, since predict makes the query's map of the task's name"
            raise expected("name", wanted, repr(name))
        return name or label

    def mask_of_label(self, image: Tensor, label: Label, *, argument: str = "image") -> Tensor:
        """The label's activation map, as published: float32 (1, 50, 50)."""
        label_maps = self.label_maps or self.text
        assert label_maps is not None
        activation = label_maps(image, [label.text])
        check_found(activation, label.text, argument)
        return activation.to(self.device)

    def shot_logits(
        self,
        features: Features,
        tasks: Sequence[Task],
        size: tuple[int, int],
        query_map: Tensor | None = None,
    ) -> list[Tensor]:
        """For each task the logits (B, K, 2, H, W) of its shots, for queries of `encode`."""
        maps = {name: map_of(features, name) for name in self.layers}
        batch = features.batch
        supports = self.support_maps(tasks, maps, ["middle", "map"])
        grids = [tuple(side[self.layers[0]].shape[-2:]) for side in (maps, supports)]
        if grids[0] != grids[1]:
            wanted = f"maps of the query's grid {grids[0]}"
            raise expected("task", wanted, f"{grids[1]}")
        shots = [one.shots for one in tasks]
        ways = self._query_maps(query_map, maps, len(tasks)).unbind(1)
        activations = torch.stack(  # (B, shots of all ways, h, w)
            [way for way, count in zip(ways, shots, strict=True) for _ in range(count)], dim=1
        )
        queries = maps | {"middle": self.middle(maps)}
        # Both directions of a pair.
        together = self.together(
            2 * self.correlation_bytes(maps, supports), on_cpu=maps[self.layers[0]].is_cpu
        )
        parts = []
        for start in range(0, sum(shots), together):
            part = {
                n: one[:, start : start + together].flatten(0, 1) for n, one in supports.items()
            }
            taken = min(together, sum(shots) - start)
            repeated = self.repeated(queries, taken)
            repeated["map"] = activations[:, start : start + taken].flatten(0, 1)
            low = self.match(repeated, part)
            large = F.interpolate(low, size, mode="bilinear", align_corners=True)
            parts.append(large.unflatten(0, (batch, taken)))
        return list(torch.cat(parts, dim=1).split(shots, dim=1))

    def match(self, query: Mapping[str, Tensor], support: Mapping[str, Tensor]) -> Tensor:
        """The queries' logits (P, 2, 2h, 2w) after the last stage.

        Args:
            query: of P pairs: the layers' maps (P, C, h, w), "middle", and "map" (P, h, w).
            support: likewise, on the same grids.
        """
        logits = self.refine(query, support, both=False)[-1].logits
        return logits[: len(query["map"])]

    def refine(
        self, query: Mapping[str, Tensor], support: Mapping[str, Tensor], *, both: bool = True
    ) -> list[Stage]:
        """All stages; arguments as in match.

        Args:
            both: whether the last stage is wanted of the supports too; else its batch is P.
        """
        pairs = len(query["map"])
        levels = [
            MutualLevel.of([query[n] for n in names], [support[n] for n in names])
            for names in self.levels
        ]
        activation = torch.cat([query["map"], support["map"]]).unsqueeze(1)  # (2 P, 1, h, w)
        fixed = self._fixed(torch.cat([query["middle"], support["middle"]]), activation.shape[2:])
        state = _resized(self.state, activation.shape[2:]).expand(2 * pairs, -1, -1, -1)
        # As published: the first masks are crossed, each image gets the other one's.
        crossed = activation.roll(pairs, dims=0)
        levels = [level.masked(_resized(crossed, level.masks.shape[2:])) for level in levels]
        stages: list[Stage] = []
        for number in range(self.stages):
            if number:
                found = stages[-1].logits.softmax(dim=1)[:, 1:]
                # On top of the masks so far, each image its own.
                levels = [
                    level.masked(level.masks * _resized(found, level.masks.shape[2:]))
                    for level in levels
                ]
                activation = _resized(found, activation.shape[2:])
            if number == self.stages - 1 and not both:
                levels = [level.of_queries() for level in levels]
                activation, state, fixed = (one[:pairs] for one in (activation, state, fixed))
            encoded: Tensor = self.hpn_learner(*levels)
            state = self._next_state(activation, encoded, state, fixed)
            stages.append(Stage(encoded, state, self._decoded(encoded, state, activation)))
        return stages

    def middle(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The sum of the maps at stride 16, in 512 channels: (B, 512, h, w)."""
        # Not a sum over an axis of their stack, which takes ten times as long on a CPU.
        summed = reduce(torch.add, [maps[name] for name in self.levels[1]])
        if not hasattr(self, "conv1024_512"):
            return summed
        # Published after enlarging the sum; the weights of a resize sum to 1.
        projected: Tensor = self.conv1024_512(summed)
        return projected

    def forward(
        self, images: Images, masks: Images, query: Tensor, query_map: Tensor | None = None
    ) -> IMROutput:
        """The training forward, one shot.

        Args:
            images: as in encode_support.
            masks: likewise.
            query: (B, 3, H, W).
            query_map: (B, h, w) or (B, 1, h, w).
        """
        task = self.encode_support(images, masks)
        if task.shots != 1:
            raise expected("images", "one shot an episode, as published", f"{task.shots} shots")
        maps = self.maps(query)
        if query_map is not None and query_map.ndim == 3:
            query_map = query_map.unsqueeze(1)
        queries = maps | {"middle": self.middle(maps)}
        queries["map"] = self._query_maps(query_map, maps, 1).squeeze(1)
        support = {
            n: one[:, 0] for n, one in self.support_maps([task], maps, ["middle", "map"]).items()
        }
        stages = self.refine(queries, support)
        large = [_resized(one.logits, query.shape[2:]) for one in stages]
        halves = [one.chunk(2) for one in large]
        return IMROutput([one[0] for one in halves], [one[1] for one in halves])

    def loss(
        self, output: IMROutput, query_mask: Tensor, support_mask: Tensor
    ) -> dict[str, Tensor]:
        """Cross-entropy of both images in every stage; 255 counts as background, as published.

        Args:
            output: of forward.
            query_mask: (B, H, W) of {0, 1, 255}.
            support_mask: (B, H, W) or (B, 1, H, W), likewise.

        Returns:
            "query_1", "support_1", "query_2", ..., one for each stage, and "total", their sum.
        """
        losses = {}
        targets = ((query_mask == 1).long(), (support_mask == 1).long().view(query_mask.shape))
        for number, both in enumerate(zip(output.query, output.support, strict=True), start=1):
            for side, logits, target in zip(("query", "support"), both, targets, strict=True):
                losses[f"{side}_{number}"] = F.cross_entropy(logits, target)
        return losses | {"total": torch.stack(list(losses.values())).sum()}

    # ---- The recurrent unit

    def _fixed(self, middle: Tensor, size: Sequence[int]) -> Tensor:
        """What the middle features and the biases add to the gates' first convolutions.

        (2 P, 3 x 512, h, w): of z, r and h. They do not change from stage to stage, and a resize
        commutes with a convolution of one pixel.
        """
        convs = [self._conv(gate, 0) for gate in "zrh"]
        weight = torch.cat([one.weight for one in convs])[:, 1 + WIDTH : 1 + WIDTH + MIDDLE]
        bias = torch.cat([one.bias for one in convs if one.bias is not None])
        return _resized(pointwise(middle, weight, bias), size)

    def _next_state(
        self, activation: Tensor, encoded: Tensor, state: Tensor, fixed: Tensor
    ) -> Tensor:
        """The gated recurrent unit on u = [activation, encoded, middle, state]."""
        z, r = (
            self._gate(gate, torch.cat([activation, encoded, state], dim=1), part).sigmoid()
            for gate, part in zip("zr", fixed.split(512, dim=1), strict=False)
        )
        inputs = torch.cat([activation, encoded, r * state], dim=1)
        candidate = self._gate("h", inputs, fixed[:, -512:]).tanh()
        return (1 - z) * state + z * candidate

    def _gate(self, gate: str, inputs: Tensor, fixed: Tensor) -> Tensor:
        weight = self._conv(gate, 0).weight
        changing = torch.cat([weight[:, : 1 + WIDTH], weight[:, 1 + WIDTH + MIDDLE :]], dim=1)
        first, second = pointwise(inputs, changing).add_(fixed).chunk(2, dim=1)
        return torch.cat([self._conv(gate, 1)(first), self._conv(gate, 2)(second)], dim=1)

    def _conv(self, gate: str, number: int) -> nn.Conv2d:
        conv = self.get_submodule(f"conv{gate}{number}")
        assert isinstance(conv, nn.Conv2d)
        return conv

    def _decoded(self, encoded: Tensor, state: Tensor, activation: Tensor) -> Tensor:
        """Logits (B, 2, 2h, 2w)."""
        size = (2 * state.shape[2], 2 * state.shape[3])
        decoded = self.decoder2(_resized(self.decoder1(state + encoded), size))
        logits: Tensor = self.res(torch.cat([decoded, _resized(activation, size)], dim=1))
        return logits

    # ---- Activation maps

    def _query_maps(
        self, query_map: Tensor | None, maps: Mapping[str, Tensor], ways: int
    ) -> Tensor:  # (B, N, h, w)
        batch, _, *grid = maps[self.levels[0][0]].shape
        if query_map is None:
            if self.query_map == "given":
                wanted = "the activation map (B, N, h, w) of each task's label in the query"
                raise expected("query_map", wanted, "none (see docs/methods.md#imr-hsnet)")
            return maps[self.levels[0][0]].new_ones(batch, ways, *grid)
        if query_map.ndim != 4 or query_map.shape[:2] != (batch, ways):
            raise expected("query_map", f"({batch}, {ways}, h, w)", str(tuple(query_map.shape)))
        return self._on_grid(query_map, maps)

    def _on_grid(self, activations: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """Activations (B, N, h, w) at the finest grid; 255, not known, is none."""
        finest = maps[self.levels[0][0]]
        known = torch.where(activations == IGNORED, 0, activations).to(finest.dtype)
        return _resized(known, finest.shape[2:])


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners on corners."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)
