"""Encoders by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastfss.encoders.amp_vgg import AMPVGG
from fastfss.encoders.base import Encoder
from fastfss.encoders.deep_stem_resnet import DeepStemResNet
from fastfss.encoders.dilated_densenet import DilatedDenseNet
from fastfss.encoders.dilated_resnet import DilatedResNet
from fastfss.encoders.every_block import EveryBlockResNet, EveryBlockVGG
from fastfss.encoders.fcn_vgg import FCNVGG
from fastfss.encoders.mobilenet_v2_tf import MobileNetV2TF
from fastfss.encoders.panet_vgg import PANetVGG
from fastfss.encoders.pfenet_encoders import PFENetResNet, PFENetVGG
from fastfss.encoders.swin import EveryBlockSwin
from fastfss.encoders.timm_encoder import PREFIX, TimmEncoder
from fastfss.encoders.torchvision_encoders import TorchvisionResNet, TorchvisionSequential
from fastfss.errors import CheckpointError
from fastfss.weights import load_into, read_checkpoint

_BUILDERS: dict[str, Callable[..., Encoder]] = {
    **dict.fromkeys(("deep_resnet50", "deep_resnet101"), DeepStemResNet),
    "dilated_densenet121": DilatedDenseNet,
    **dict.fromkeys(("dilated_resnet50", "dilated_resnet101"), DilatedResNet),
    **dict.fromkeys(("amp_vgg16", "amp_vgg16_bn"), AMPVGG),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), TorchvisionResNet),
    **dict.fromkeys(("vgg16", "vgg16_bn", "mobilenet_v2", "squeezenet1_1"), TorchvisionSequential),
    **dict.fromkeys(("blocks_resnet50", "blocks_resnet101"), EveryBlockResNet),
    "blocks_swin_b": lambda _name: EveryBlockSwin(),
    "blocks_vgg16": lambda _name: EveryBlockVGG(),
    **dict.fromkeys(("fcn_vgg16", "fcn_vgg16_lite"), FCNVGG),
    "mobilenet_v2_tf": lambda _name: MobileNetV2TF(),
    "panet_vgg16": PANetVGG,
    **dict.fromkeys(("pfenet_resnet50", "pfenet_resnet101", "pfenet_resnet152"), PFENetResNet),
    "pfenet_vgg16_bn": lambda _name: PFENetVGG(),
    **dict.fromkeys(("ppnet_resnet50", "ppnet_resnet101"), DilatedResNet),
}


def list_encoders() -> list[str]:
    """The names that `create_encoder` knows, besides "timm:" and any model of timm."""
    return list(_BUILDERS)


def create_encoder(
    name: str,
    *,
    weights: str | Path | None = None,
    last: str | None = None,
    folded: bool = False,
    **options: Any,
) -> Encoder:
    """Build an encoder and load its weights.

    A file may be a whole classifier, whose head is left out; it may stop before the deepest stage,
    and then the encoder has only the maps that it reaches; its batch norms may be folded into its
    convolutions, and then the encoder has none.

    Args:
        name: one of `list_encoders()`, or "timm:" and the name of any model of timm.
        weights: None for random ones, "imagenet" for the download that torchvision or timm offers,
            or a file in the published key names.
        last: the deepest feature map to keep; what only deeper ones need is not kept.
        folded: whether to fold the batch norms, for inference; see `Encoder.fold_batch_norm`.
        options: for "timm:" names `final_norm`, `pad`, and what timm.create_model takes; for
            "fcn_vgg16" and "fcn_vgg16_lite" `annotations`.

    Returns:
        The encoder, in training mode as every new module, unless folded by `folded`.

    Raises:
        ValueError: an unknown name or feature map.
        TypeError: options that the encoder does not take.
        ImportError: a "timm:" name without timm.
        CheckpointError: a file that cannot be read or does not fit.
        ConnectionError: the download failed.

    Examples:
        >>> encoder = create_encoder("resnet18", last="layer3").eval()
        >>> [(f.name, f.channels, f.stride) for f in encoder.features]
        [('layer1', 64, 4), ('layer2', 128, 8), ('layer3', 256, 16)]
    """
    encoder = _build(name, options)
    if weights is not None:
        if weights == "imagenet":
            tensors, source = _download(encoder), f"the ImageNet weights of {name}"
        else:
            tensors, source = read_checkpoint(weights), str(weights)
        encoder = load_encoder(encoder, tensors, source)
        if last is not None and last not in {feature.name for feature in encoder.features}:
            reached = encoder.features[-1].name
            raise ValueError(f"last: {last!r} is not in {source}; its deepest map is {reached!r}")
    if last is not None:
        encoder.truncate_(last)
    return encoder.fold_batch_norm() if folded else encoder


def _build(name: str, options: Mapping[str, Any]) -> Encoder:
    if name.startswith(PREFIX):
        return TimmEncoder(name, **options)
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"name: no encoder {name!r}{hint} There are {', '.join(_BUILDERS)}, and any "
            f"'{PREFIX}<model of timm>'."
        )
    build = _BUILDERS[name]
    known = {"annotations"} if build is FCNVGG else set()
    if unknown := [option for option in options if option not in known]:
        raise TypeError(f"{name} takes no option {', '.join(map(repr, unknown))}")
    return build(name, **options)


def _download(encoder: Encoder) -> dict[str, Tensor]:
    try:
        return encoder.pretrained()
    except (ImportError, ValueError):
        raise
    # Each of the libraries below raises errors of its own HTTP client.
    except Exception as error:
        raise ConnectionError(
            f"the ImageNet weights of {encoder.name} could not be downloaded "
            f"({type(error).__name__}: {error}); a local file works: weights=<path>"
        ) from error


def load_encoder(encoder: Encoder, tensors: Mapping[str, Tensor], source: str) -> Encoder:
    """Fill an encoder from the tensors of a file, as `create_encoder(name, weights=file)` does.

    Args:
        encoder: as created; loses the maps that the file does not reach.
        tensors: key to tensor, as read from the file.
        source: the file, for messages.

    Returns:
        The encoder, or its copy without batch norms where the file's are folded.

    Raises:
        CheckpointError: tensors that do not fit.
    """
    if all(key.startswith("encoder.") for key in tensors):
        # A method's own file: its encoder is all that it has.
        tensors = {key.removeprefix("encoder."): value for key, value in tensors.items()}
    own = encoder.own_keys(tensors)
    if encoder.name == "mobilenet_v2" and "stem.weight" in own:
        raise CheckpointError(
            f"{source} has TensorFlow's layout of MobileNetV2: create_encoder('mobilenet_v2_tf')"
        )
    encoder.keep_what_is_in_(own)
    if _is_folded(encoder, own):
        encoder = encoder.fold_batch_norm().requires_grad_(True).train(encoder.training)
    load_into(encoder, own, ignore=encoder.ignored_keys, source=source)
    return encoder


def _is_folded(encoder: Encoder, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are those of the encoder after `fold_batch_norm`.

    Then convolutions have biases that they lack before, or, where they have biases anyway (VGG),
    nothing is there of any batch norm.
    """
    modules = dict(encoder.named_modules())
    norms = [name for name, module in modules.items() if isinstance(module, _BatchNorm)]
    new_biases = any(
        isinstance(module, nn.Conv2d) and module.bias is None and f"{name}.bias" in tensors
        for name, module in modules.items()
    )
    return new_biases or (
        bool(norms) and not any(f"{name}.running_mean" in tensors for name in norms)
    )
