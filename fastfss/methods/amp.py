"""AMP: proxies of a new class put into the classifiers of three levels.

Siam, Oreshkin, Jagersand: "AMP: Adaptive Masked Proxies for Few-Shot Segmentation", ICCV 2019, as
implemented in lizhaoliu-Lec/DENet (ACM MM 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.annotation import SupportMask
from fastfss.data import ImageLike
from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.class_rows import (
    ClassLogits,
    Labels,
    apply_rows,
    checked_labels,
    insert_rows,
    label_of,
)
from fastfss.methods.features import Features, map_of, stacked_features
from fastfss.methods.info import MethodInfo
from fastfss.methods.prediction import Prediction
from fastfss.methods.prototypes import region_masks, upsample
from fastfss.methods.shots import Images, stacked_shots
from fastfss.methods.ways import prediction_of
from fastfss.ops import masked_average_pool
from fastfss.task import Task
from fastfss.text import Label
from fastfss.weights import KeyMap

Background = Literal["running", "episode"]

LEVELS = (1, 2, 3)
_MAPS = tuple(f"level{level}" for level in LEVELS)
_EPS = 1e-3  # added to the area of a mask
# Published files name every tensor of the levels twice; where the two differ, this one counts.
_ALIASES = {
    "level1.0.": "encoder.conv1.",
    "level1.2.": "encoder.conv2.",
    "level1.4.": "encoder.conv3.",
    "level2.0.": "encoder.conv4.",
    "level3.0.": "encoder.conv5.",
    "level3.2.": "fully_conv.",
}
AMP_KEYS = KeyMap(
    "AMP",
    (
        *((f"conv{block}.", f"encoder.conv{block}.") for block in range(1, 6)),
        ("fully_conv.", "fully_conv."),
        *_ALIASES.items(),
    ),
)


class AMP(FewShotSegmenter):
    """AMP: at each of three levels a classifier with a row a class, the new class's a masked mean.

    Args:
        encoder: the backbone; published with "amp_vgg16" and "amp_vgg16_bn". It is frozen.
        layers: the three feature maps to classify, the finest first; published: pool3, pool4 and
            pool5.
        size: see FewShotSegmenter.
        classes: of the classifiers, background included; 21 for PASCAL VOC, 81 for COCO.
        depth: channels to which the last map is brought.
        base: whether the trained rows of the base classes compete with the new class; otherwise the
            background's row alone does.
        background: where a support set's background proxies go. "running", as published: every
            call of `encode_support` moves row 0 of the classifiers for good, so that results depend
            on what came before, and within a batch all queries share the last row (with `base`).
            "episode": each episode starts from row 0 as it is, which stays. `fit` always does that.
        alpha: how far each support image moves the background's row.
        batch_statistics: whether the encoder's batch norms, where it has any, use and track the
            statistics of each batch while training, as published; otherwise they are frozen too.
    """

    method = "amp"
    info = MethodInfo(
        title="AMP",
        paper="Siam, Oreshkin, Jagersand: AMP: Adaptive Masked Proxies for Few-Shot Segmentation",
        venue="ICCV 2019",
        arxiv="1902.11123",
        encoders=("amp_vgg16", "amp_vgg16_bn"),
        parity="five golden cases of lizhaoliu-Lec/DENet's implementation",
    )
    published_keys = AMP_KEYS
    head_keys = ("fully_conv.", *(f"level{level}_classifier." for level in LEVELS))
    frame = "square"
    default_size = 321

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("pool3", "pool4", "pool5"),
        size: int | None = None,
        *,
        classes: int = 21,
        depth: int = 256,
        base: bool = True,
        background: Background = "running",
        alpha: float = 0.25821,
        batch_statistics: bool = True,
    ) -> None:
        super().__init__(encoder, layers, size)
        if len(layers) != len(LEVELS):
            raise expected("layers", "three names, the finest map first", ", ".join(layers))
        if classes < 2:
            raise expected("classes", "at least 2, background included", str(classes))
        if background not in get_args(Background):
            raise expected("background", '"running" or "episode"', repr(background))
        if not 0 < alpha <= 1:
            raise expected("alpha", "a number above 0 and at most 1", str(alpha))
        encoder.requires_grad_(False)
        encoder.batch_statistics = batch_statistics
        encoder.train(encoder.training)  # batch_statistics counts from there
        self.classes = classes
        self.base = base
        self.background = background
        self.alpha = alpha
        first, second, third = (encoder.info(layer).channels for layer in layers)
        self.fully_conv = nn.Sequential(nn.Conv2d(third, depth, 1))
        self.level1_classifier = nn.Conv2d(first, classes, 1, bias=False)
        self.level2_classifier = nn.Conv2d(second, classes, 1, bias=False)
        self.level3_classifier = nn.Conv2d(depth, classes, 1, bias=False)

    @property
    def classifiers(self) -> tuple[nn.Conv2d, ...]:
        """Those of the three levels, the finest first."""
        return (self.level1_classifier, self.level2_classifier, self.level3_classifier)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Those of `levels`, "level1" to "level3"."""
        return {f"level{n}": one for n, one in zip(LEVELS, self.levels(images), strict=True)}

    def levels(self, images: Tensor) -> list[Tensor]:
        """The three maps (B, D, h, w) of images (B, 3, H, W), the finest first."""
        maps = list(self.encoder(images, self.layers).values())
        return [*maps[:-1], self.fully_conv(maps[-1])]

    # ---- Support

    def encode_support(self, images: Images, masks: Images, labels: Labels | None = None) -> Task:
        """Turn a support set into a Task of proxies; see FewShotSegmenter.encode_support.

        The Task holds for each level n, (B, K, D) each: "foreground<n>" and "background<n>", the
        masked means at length 1, and "start<n>", the background's row before that shot; and, with
        labels, "label" (B, K).

        Args:
            images: see FewShotSegmenter; all shots of one size.
            masks: likewise.
            labels: class ids whose rows the proxies replace, one for all or one an episode. Without
                any the new class has a row of its own after those of the classifier.
        """
        return self._encode(images, masks, labels, self.background)

    def support_from(
        self, features: Sequence[Features], masks: Images, labels: Labels | None = None
    ) -> Task:
        """Turn encoded shots into a Task; see encode_support."""
        maps, shot_masks = stacked_features(features, _MAPS, masks)
        return self._task([maps[name] for name in _MAPS], shot_masks, labels, self.background)

    def fit_from(self, features: Sequence[Features], masks: Images) -> Task:
        """See FewShotSegmenter.fit_from; the background's row stays, whatever `background` says."""
        maps, shot_masks = stacked_features(features, _MAPS, masks)
        return self._task([maps[name] for name in _MAPS], shot_masks, None, "episode")

    @torch.no_grad()
    def fit(
        self,
        shots: Iterable[tuple[ImageLike, SupportMask | Label]],
        *,
        name: str | None = None,
        mask_value: int | None = None,
        label: int | None = None,
    ) -> Task:
        """Make a Task from annotated images; see FewShotSegmenter.fit.

        The model stays as it is, whatever `background` says.

        Args:
            shots: see FewShotSegmenter.fit.
            name: likewise.
            mask_value: likewise.
            label: see encode_support.
        """
        self._warn_if_random()
        shots = list(shots)
        images, masks = self.read_shots(shots, mask_value)
        return self.named(self._encode(images, masks, label, "episode"), self.name_of(shots, name))

    def _encode(
        self, images: Images, masks: Images, labels: Labels | None, background: Background
    ) -> Task:
        shots, shot_masks = stacked_shots(images, masks)
        return self._task(self.levels(shots.flatten(0, 1)), shot_masks, labels, background)

    def _task(
        self,
        levels: Sequence[Tensor],  # three times (B * K, D, h, w)
        masks: Tensor,  # (B, K, H, W)
        labels: Labels | None,
        background: Background,
    ) -> Task:
        batch, count = masks.shape[:2]
        ids = checked_labels(labels, batch, self.classes, masks.device)
        regions = region_masks(masks.flatten(0, 1)).to(levels[0].dtype)
        tensors: dict[str, Tensor] = {}
        for level, features in zip(LEVELS, levels, strict=True):
            small = F.interpolate(regions, features.shape[2:], mode="nearest")
            proxies = F.normalize(masked_average_pool(features, small, eps=_EPS), dim=2)
            foreground, own = proxies.unbind(dim=1)  # (B * K, D)
            tensors[f"foreground{level}"] = foreground
            tensors[f"background{level}"] = own
            weight = self.classifiers[level - 1].weight
            row = weight[0].detach().flatten().float().clone()  # a Task must not change with it
            if background == "running":
                before = moved_in_turn(row, own.float(), self.alpha)
                after = moved(before[-1], own[-1:].float(), self.alpha)
                with torch.no_grad():
                    weight[0].copy_(after[:, None, None])
            else:
                before = row.expand(batch * count, -1)
            tensors[f"start{level}"] = before
        if ids is not None:
            tensors["label"] = ids.repeat_interleave(count)
        return Task(self.method, {k: t.unflatten(0, (batch, count)) for k, t in tensors.items()})

    # ---- Query

    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """Segment encoded queries; see FewShotSegmenter.segment_from.

        A class's background is, at every position, the largest of all other logits: the
        background's and, with `base`, the base classes'.
        """
        tasks = self.checked_ways(task, features.batch)
        scores = self.head([map_of(features, name) for name in _MAPS], tasks).scores()
        return prediction_of(upsample(scores, output_size or features.size))

    def classify(self, query: Tensor, task: Task | Sequence[Task]) -> ClassLogits:
        """The published logits, of all classes, at the finest level's size.

        Args:
            query: (B, 3, H, W).
            task: one task, or one a way. The background's row is moved by the shots of all tasks in
                their order.
        """
        tasks = self.ways_of(query, task)
        return self.head(self.levels(query), tasks)

    def head(self, levels: Sequence[Tensor], tasks: Sequence[Task]) -> ClassLogits:
        """The logits of queries given as `levels` gives them."""
        logits, places = self.level_logits(levels, tasks)
        return ClassLogits(_summed(logits), places)

    def level_logits(
        self, levels: Sequence[Tensor], tasks: Sequence[Task]
    ) -> tuple[list[Tensor], Tensor]:
        """The logits (B, C', h, w) of each level and the ways' channels (B, W) in them.

        Args:
            levels: the query's maps, as `levels` gives them.
            tasks: one a way.
        """
        labels = [label_of(task) if self.base else None for task in tasks]
        logits = []
        for level, features in zip(LEVELS, levels, strict=True):
            batch, dtype = features.shape[0], features.dtype
            background = self.background_row(tasks, level).to(dtype).expand(batch, -1, -1)
            trained = self.classifiers[level - 1].weight.flatten(1)[1:].expand(batch, -1, -1)
            weight = torch.cat([background, trained], dim=1) if self.base else background
            foregrounds = [
                self._of_level(task, "foreground", level).mean(dim=1).expand(batch, -1)
                for task in tasks
            ]
            rows = torch.stack(foregrounds, dim=1).to(dtype)
            extended, places = insert_rows(weight, rows, labels)
            logits.append(apply_rows(extended, features))
        return logits, places

    def background_row(self, tasks: Sequence[Task], level: int) -> Tensor:
        """The background's row (1 or B, 1, D) of a level's classifier, float32."""
        rows = self._of_level(tasks[0], "start", level)[:, 0]
        for task in tasks:  # one after the other
            rows = moved(rows, self._of_level(task, "background", level), self.alpha)
        if self.base and self.background == "running":
            rows = rows[-1:]  # published: row 0 is shared, and the batch's last item wrote it last
        return rows.unsqueeze(1)

    def _of_level(self, task: Task, name: str, level: int) -> Tensor:
        """A task's tensor (B, K, D) of a level, float32."""
        tensor, width = task.tensors[f"{name}{level}"], self.classifiers[level - 1].in_channels
        if tensor.shape[2] != width:
            wanted = f"{name}{level} of {width} channels"
            raise expected("task", wanted, f"a tensor {tuple(tensor.shape)}")
        return tensor.float()

    # ---- Training

    def forward(self, images: Tensor) -> Tensor:
        """The training forward: logits (B, classes, h, w) of images (B, 3, H, W), no support."""
        pairs = zip(self.classifiers, self.levels(images), strict=True)
        return _summed([classifier(features) for classifier, features in pairs])

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, mean over the pixels that are not 255.

        Args:
            logits: (B, classes, h, w), enlarged to the labels.
            labels: (B, H, W) class ids; 255 for held-out classes.
        """
        size = (labels.shape[1], labels.shape[2])
        return F.cross_entropy(upsample(logits, size), labels.long(), ignore_index=IGNORED)

    # ---- Weights

    def settings(self) -> dict[str, str]:
        """See FewShotSegmenter; and the number of classes, on which a label depends."""
        return {**super().settings(), "classes": str(self.classes)}

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See FewShotSegmenter; of an entry's two published names the one under a level counts."""
        later = sorted(tensors, key=lambda key: key.startswith(tuple(_ALIASES)))
        return super().own_keys({key: tensors[key] for key in later})

    def fingerprinted(self) -> dict[str, Tensor]:
        """All but the classifiers: a Task brings its background's rows along, and proxies do not
        depend on the others.
        """
        return {k: t for k, t in self.state_dict().items() if "_classifier." not in k}


def moved(
    row: Tensor,  # (..., D)
    proxies: Tensor,  # (..., K, D)
    alpha: float,
) -> Tensor:  # (..., D)
    """r := alpha b_j + (1 - alpha) r for j = 1 to K, in closed form:

    (1 - alpha)^K r + alpha sum_j (1 - alpha)^(K - j) b_j
    """
    count = proxies.shape[-2]
    powers = _powers(count + 1, alpha, proxies).flip(0)  # exponents K to 0
    return powers[0] * row + alpha * (powers[1:, None] * proxies).sum(dim=-2)


def moved_in_turn(
    row: Tensor,  # (D,)
    proxies: Tensor,  # (K, D)
    alpha: float,
) -> Tensor:  # (K, D)
    """The row before each of the K moves."""
    powers = _powers(len(proxies), alpha, proxies)
    steps = torch.arange(len(proxies), device=proxies.device)
    exponents = steps[:, None] - steps - 1  # of b_i in the row before step j
    weights = torch.where(exponents >= 0, powers[exponents.clamp_min(0)], 0)
    return powers[:, None] * row + alpha * (weights @ proxies)


def _powers(count: int, alpha: float, like: Tensor) -> Tensor:
    """(1 - alpha)^n for n = 0 to count - 1."""
    return (1 - alpha) ** torch.arange(count, device=like.device, dtype=like.dtype)


def _summed(levels: list[Tensor]) -> Tensor:
    """L_1 + up(L_2 + up(L_3)): (B, C, h, w) of the first level's size."""
    total = levels[-1]
    for one in reversed(levels[:-1]):
        total = one + upsample(total, (one.shape[2], one.shape[3]))
    return total
