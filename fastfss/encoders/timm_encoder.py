"""Any model of timm as an encoder."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders.base import Encoder, FeatureInfo, Normalization
from fastfss.errors import import_extra

PREFIX = "timm:"


class TimmEncoder(Encoder):
    """A model of timm; convolutional networks give a pyramid, transformers a map per block.

    The maps have the names that timm gives them ("layer2", "stages.1", "blocks.11"). Transformers
    take any image size: their position embedding is resized, and an image that the patches do not
    divide is padded with zeros (the mean colour) at the right and bottom, the map of the padding
    cut off again. Models that timm builds for one size only need `img_size` among the options.

    Args:
        name: "timm:" and the name of a model, with its tag if certain weights are meant, such as
            "timm:vit_small_patch14_dinov2.lvd142m".
        final_norm: whether every map of a transformer goes through its last layer norm, as DINOv2
            and DINOv3 do for intermediate layers.
        pad: whether to pad images to a multiple of the deepest stride as for transformers; for
            networks that need it, such as HRNet.
        options: what else timm.create_model takes, such as `output_stride` or `img_size`.

    Raises:
        ImportError: timm is not installed.
        ValueError: no such model.
        NotImplementedError: a model without intermediate maps, in the installed version of timm.
    """

    def __init__(
        self, name: str, *, final_norm: bool = False, pad: bool = False, **options: Any
    ) -> None:
        timm = _timm()
        model_name = name.removeprefix(PREFIX)
        _check(timm, model_name)
        fixed = {"pretrained", "num_classes", "features_only"} & options.keys()
        if fixed:
            raise TypeError(f"{name} takes no option {', '.join(sorted(fixed))}; see `weights`")
        with torch.device("meta"):
            skeleton = timm.create_model(model_name, num_classes=0, **options)
        features = _features(skeleton.feature_info)
        named_apart = len({feature.name for feature in features}) == len(features)
        if not hasattr(skeleton, "forward_intermediates") or not named_apart:
            raise NotImplementedError(
                f"{name}: timm {timm.__version__} returns no named intermediate maps of this model"
            )
        accepted = inspect.signature(type(skeleton).__init__).parameters
        flexible = {
            flag: value
            for flag, value in (("dynamic_img_size", True), ("strict_img_size", False))
            if flag in accepted
        }
        model = timm.create_model(model_name, num_classes=0, **{**flexible, **options})
        configuration = model.pretrained_cfg
        super().__init__(
            PREFIX + model_name,
            features,
            Normalization(
                mean=tuple(configuration["mean"]),
                std=tuple(configuration["std"]),
            ),
        )
        self.model = model
        self.final_norm = final_norm
        own = {"final_norm": final_norm, "pad": pad}
        self.options = {**{key: value for key, value in own.items() if value}, **options}
        self._model_options = options
        self._probe_size = tuple(configuration["input_size"][1:])
        # Patches of fixed position must divide the image; convolutions round by themselves.
        pads = pad or ("img_size" in accepted and hasattr(model, "patch_embed"))
        self._multiple = max(feature.stride for feature in self.features) if pads else 1
        classifier = configuration.get("classifier") or ()
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        self.ignored_keys = tuple(f"model.{classifier}.*" for classifier in names)
        self.train(self.training)

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of timm's file under this encoder's names."""
        return {f"model.{key.removeprefix('model.')}": value for key, value in tensors.items()}

    def pretrained(self) -> dict[str, Tensor]:
        """The weights that timm has for this model, by its download."""
        return pretrained_state_dict(self.name.removeprefix(PREFIX), **self._model_options)

    def _compute(self, images: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        if self._multiple > 1:
            # Also where nothing is missing: an exported graph has no branch on the image's size.
            images = F.pad(images, (0, -width % self._multiple, 0, -height % self._multiple))
        chosen = [index for index, f in enumerate(self.features) if f.name in wanted]
        maps = self.model.forward_intermediates(
            images,
            indices=chosen,
            norm=self.final_norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        found: dict[str, Tensor] = {}
        for index, x in zip(chosen, maps, strict=True):
            feature = self.features[index]
            if self._multiple > 1:
                x = x[..., : -(-height // feature.stride), : -(-width // feature.stride)]
            found[feature.name] = x
        return found

    def _drop(self, features: Sequence[FeatureInfo]) -> None:
        kept = len(self.features) - len(features)
        self.model.prune_intermediate_layers(
            list(range(kept)), prune_norm=not self.final_norm, prune_head=True
        )


def pretrained_state_dict(model_name: str, **options: Any) -> dict[str, Tensor]:
    """Download the weights of a model of timm.

    Args:
        model_name: timm's name, with or without tag.
        options: what else timm.create_model takes.

    Returns:
        The state dict without a classifier, with timm's key names.

    Raises:
        ImportError: timm is not installed.
    """
    model = _timm().create_model(model_name, pretrained=True, num_classes=0, **options)
    tensors: dict[str, Tensor] = model.state_dict()
    return tensors


def _features(entries: Any) -> list[FeatureInfo]:
    # Some families hold a list of dictionaries, others timm's own list class around one.
    entries = getattr(entries, "info", entries)
    return [
        FeatureInfo(entry["module"], int(entry["num_chs"]), int(entry["reduction"]))
        for entry in entries
    ]


def _check(timm: ModuleType, model_name: str) -> None:
    if timm.is_model(model_name):
        return
    near = difflib.get_close_matches(model_name.partition(".")[0], timm.list_models(), n=3)
    hint = f"; near it: {', '.join(near)}" if near else ""
    raise ValueError(f"name: timm has no model {model_name!r}{hint}")


def _timm() -> ModuleType:
    return import_extra("timm", extra="timm", purpose="a model of timm")
