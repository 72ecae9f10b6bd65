"""What every encoder is: a module that returns named feature maps, shallow to deep."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastfss.encoders._folding import fold_batch_norm_
from fastfss.encoders.pointwise import use_pointwise_
from fastfss.errors import expected, expected_kind
from fastfss.ops._gpu_inference import run

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map that an encoder can return.

    Args:
        name: its key in the result.
        channels: its channels.
        stride: pixels per position; an H x W image gives about H / stride x W / stride positions.
    """

    name: str
    channels: int
    stride: int


@dataclass(frozen=True)
class Normalization:
    """What the encoder expects of its input: `(scale * image - mean) / std`.

    Args:
        mean: of red, green and blue.
        std: likewise, the standard deviations.
        scale: the largest pixel; 255 for Caffe's networks.
        bgr: whether the channels come out in the order blue, green, red.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1.0
    bgr: bool = False

    def apply(self, images: Tensor) -> Tensor:
        """Normalise images.

        Args:
            images: (..., 3, H, W) floating point, RGB in [0, 1].

        Returns:
            The same shape, dtype and device; channels in the encoder's order.

        Raises:
            TypeError: images that are not floating point.
        """
        if not images.is_floating_point():
            raise expected_kind("images", "floating point in [0, 1]", str(images.dtype))
        mean = images.new_tensor(self.mean)[:, None, None]
        std = images.new_tensor(self.std)[:, None, None]
        if self.scale != 1:
            images = images * self.scale
        normalised = (images - mean) / std
        return normalised.flip(-3) if self.bgr else normalised


IMAGENET_NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def initialise_(module: nn.Module) -> None:
    """Kaiming-normal convolutions (fan out, ReLU) without bias, batch norms that change nothing."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, _BatchNorm):
            part.reset_parameters()


class MapEngine(Protocol):
    """What computes an encoder's maps in the place of its modules."""

    def maps(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor] | None:
        """The maps of these names, or None for those that the modules are to compute.

        Args:
            images: as in `Encoder.forward`.
            names: in the order of `Encoder.features`.
        """


class Encoder(nn.Module):
    """An image encoder that returns named feature maps.

    Batch norm uses its stored statistics, in training mode too, because the few images of an
    episode are too few for statistics of their own; `batch_statistics` is for the methods that were
    published the other way.

    Attributes:
        name: what `create_encoder` calls it.
        features: everything `forward` can return, shallow to deep.
        normalization: what its input must have been normalised with.
        options: with these, `create_encoder(name, **options)` builds the same modules again.
        batch_statistics: whether batch norms follow `train`, and then use and keep a running mean
            of the statistics of what passes through. Counts from the next call of `train`.
        inputs: channels of its input; more than an image's 3 where an annotation comes with it.
        engine: what computes the maps where it serves; of `fastfss.engines.accelerate`. A deep copy
            has none.
    """

    name: str
    features: tuple[FeatureInfo, ...]
    normalization: Normalization
    options: Mapping[str, object]
    # Shell patterns of entries, under this encoder's names, that a file may hold and that are left
    # out: classifiers and stages that the encoder does not have.
    ignored_keys: tuple[str, ...] = ()
    batch_statistics: bool = False
    inputs: int = 3
    engine: MapEngine | None = None

    # The image size with which fold_batch_norm watches which convolution feeds which norm.
    _probe_size: tuple[int, int] = (64, 64)

    def __init__(
        self, name: str, features: Sequence[FeatureInfo], normalization: Normalization
    ) -> None:
        super().__init__()
        self.name = name
        self.features = tuple(features)
        self.normalization = normalization
        self.options = {}

    def forward(self, images: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute feature maps, and nothing deeper than the deepest one asked for.

        Args:
            images: (B, 3, H, W) floating point, normalised with `normalization`; (B, inputs, H, W)
                for an encoder that takes more than the image.
            names: the maps wanted; None for all of `features`.

        Returns:
            Name to map (B, channels, H', W'), in the order asked for.

        Raises:
            TypeError: images that are not floating point, or `names` given as one text.
            ValueError: images of another shape, or a name that `features` lacks.
        """
        if images.ndim != 4 or images.shape[1] != self.inputs:
            raise expected("images", f"(B, {self.inputs}, H, W)", str(tuple(images.shape)))
        if not images.is_floating_point():
            raise expected_kind("images", "normalised floating point", str(images.dtype))
        if isinstance(names, str):
            raise expected_kind("names", "a sequence of names", f"the text {names!r}")
        wanted = [feature.name for feature in self.features] if names is None else list(names)
        for name in wanted:
            self.info(name)
        if not wanted:
            return {}
        maps = None
        if self.engine is not None:
            names = tuple(one.name for one in self.features if one.name in wanted)
            maps = self.engine.maps(images, names)
        if maps is None:
            maps = self._compute(images, frozenset(wanted))
        return {name: maps[name] for name in wanted}

    def info(self, name: str) -> FeatureInfo:
        """The description of one feature map.

        Args:
            name: one of the names in `features`.

        Raises:
            ValueError: no such map.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        offered = ", ".join(feature.name for feature in self.features)
        raise ValueError(f"{self.name} has no feature map {name!r}; it has {offered}")

    def fold_batch_norm(self, *, channels_last: bool = False) -> Self:
        """A copy for inference with the batch norms folded into the convolutions before them.

        A norm that follows no convolution, as in a pre-activation network of timm, stays. On one
        CPU thread the copy's 1x1 convolutions are twice as fast besides; see `pointwise`.

        Args:
            channels_last: also keep the weights in channels-last order, which makes the
                convolutions work in that order and return channels-last maps.

        Returns:
            A copy in evaluation mode whose parameters need no gradient; its maps are equal to 1e-5
            of their norm.

        Raises:
            NotImplementedError: a convolution that feeds a norm feeds something else too.
        """
        folded = copy.deepcopy(self).eval().requires_grad_(False)
        if folded._fold_():
            folded.options = {**folded.options, "folded": True}
        use_pointwise_(folded)
        return folded.to(memory_format=torch.channels_last) if channels_last else folded

    def truncate_(self, last: str) -> Self:
        """Drop everything deeper than one map, its parameters included.

        Args:
            last: the deepest map to keep.

        Returns:
            This encoder.

        Raises:
            ValueError: no such map.
        """
        kept = self.features[: self.features.index(self.info(last)) + 1]
        if kept != self.features:
            self._drop(self.features[len(kept) :])
            self.features = kept
            self.options = {**self.options, "last": last}
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode; batch norms stay in evaluation mode unless `batch_statistics` is set."""
        super().train(mode)
        if self.batch_statistics:
            return self
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published file under this encoder's names.

        Args:
            tensors: key to tensor, as read from the file.
        """
        return dict(tensors)

    def pretrained(self) -> dict[str, Tensor]:
        """Download ImageNet weights, under published names.

        Raises:
            ValueError: nobody offers any for this encoder.
        """
        raise ValueError(
            f"{self.name}: no ImageNet weights to download; give a file, weights=<path>"
        )

    def keep_what_is_in_(self, tensors: Mapping[str, Tensor]) -> None:
        """Drop the deepest maps of which a file holds nothing.

        Args:
            tensors: the file's tensors, under this encoder's names.
        """

    def _compute(self, images: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        """The maps named in `wanted`, which is not empty."""
        raise NotImplementedError

    def _drop(self, features: Sequence[FeatureInfo]) -> None:
        """Delete the modules that only these maps, the deepest ones, need."""
        raise NotImplementedError

    def _fold_(self) -> bool:
        """Fold in place; whether there was anything to fold."""
        weight = next(self.parameters())
        probe = torch.randn(1, 3, *self._probe_size, generator=torch.Generator().manual_seed(0))
        return fold_batch_norm_(self, probe.to(weight))


class StagedEncoder(Encoder):
    """An encoder whose modules run one after another, a feature map after each stage.

    Args:
        name, features, normalization: as in `Encoder`.
        stages: for each feature map the paths of the modules that lead to it from the one before,
            in order.
    """

    def __init__(
        self,
        name: str,
        features: Sequence[FeatureInfo],
        normalization: Normalization,
        stages: Mapping[str, tuple[str, ...]],
    ) -> None:
        super().__init__(name, features, normalization)
        # Paths, not modules: folding replaces modules, and a copy must not run the original's.
        self._stages = dict(stages)

    def keep_what_is_in_(self, tensors: Mapping[str, Tensor]) -> None:
        """Drop the deepest maps of which a file holds nothing."""
        mine = self.state_dict().keys()
        held: list[str] = []
        before = None
        for feature in self.features:
            starts = tuple(f"{path}." for path in self._stages[feature.name])
            # What needs nothing, a pooling, is held together with the map that it is made of.
            needs = any(key.startswith(starts) for key in mine)
            if any(key.startswith(starts) for key in tensors) or (
                not needs and held[-1:] == [before]
            ):
                held.append(feature.name)
            before = feature.name
        # With nothing at all the file is the wrong one, and loading it will say so.
        if held:
            self.truncate_(held[-1])

    def resume(
        self,
        features: Tensor,  # (B, C, h, w)
        after: str,
        until: str,
    ) -> Tensor:  # (B, C', h', w')
        """Compute a deeper map from a shallower one, which a method may have changed meanwhile.

        Args:
            features: the map `after`, or what became of it.
            after: its name.
            until: the name of the deeper map.

        Raises:
            ValueError: an unknown name, or `until` is not deeper than `after`.
        """
        first, last = (self.features.index(self.info(name)) for name in (after, until))
        if last <= first:
            raise expected("until", f"a map deeper than {after!r}", repr(until))
        for feature in self.features[first + 1 : last + 1]:
            features = self._run(feature.name, features)
        return features

    def _run(self, stage: str, x: Tensor) -> Tensor:
        return run([attrgetter(path)(self) for path in self._stages[stage]], x)

    def _compute(self, images: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}
        x = images
        for feature in self.features:
            x = self._run(feature.name, x)
            if feature.name in wanted:
                maps[feature.name] = x
                if len(maps) == len(wanted):
                    break
        return maps

    def _drop(self, features: Sequence[FeatureInfo]) -> None:
        for feature in features:
            for path in self._stages.pop(feature.name):
                parent, _, leaf = path.rpartition(".")
                delattr(self.get_submodule(parent), leaf)
