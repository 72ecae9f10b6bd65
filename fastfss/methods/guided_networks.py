"""Every guided network by its published name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastfss.methods.fcn32s import FCN32s
from fastfss.methods.guided import GuidedLate, GuidedSegmenter
from fastfss.methods.guided_early import GuidedEarly
from fastfss.methods.guided_parts import (
    VALUES,
    fixed_annotation_kernel,
    fixed_decoder_kernel,
)
from fastfss.methods.interactive import InteractiveEarly, InteractiveLate


@dataclass(frozen=True)
class PublishedNetwork:
    """What a published name stands for.

    Attributes:
        method: the name in our registry.
        encoder: its encoder.
        options: what else to give to create_model.
    """

    method: str
    encoder: str
    options: Mapping[str, int | bool] = field(default_factory=dict)


_FULL, _LITE = "fcn_vgg16", "fcn_vgg16_lite"

GUIDED_NETWORKS = {
    "cofeat-early": PublishedNetwork(GuidedEarly.method, _LITE),
    "cofeat-late": PublishedNetwork(GuidedLate.method, _FULL),
    "cofeat-late-lite": PublishedNetwork(GuidedLate.method, _LITE),
    "cofeat-late-lite-unshared": PublishedNetwork(GuidedLate.method, _LITE, {"shared": False}),
    "fcn32s": PublishedNetwork(FCN32s.method, _FULL),
    "fcn32s-lite": PublishedNetwork(FCN32s.method, _LITE),
    "fgbg": PublishedNetwork(FCN32s.method, _FULL, {"classes": 2}),
    "fgbg-lite": PublishedNetwork(FCN32s.method, _LITE, {"classes": 2}),
    "interactive-early": PublishedNetwork(InteractiveEarly.method, _FULL),
    "interactive-early-lite": PublishedNetwork(InteractiveEarly.method, _LITE),
    "interactive-late": PublishedNetwork(InteractiveLate.method, _FULL),
    "interactive-late-glob": PublishedNetwork(GuidedLate.method, _FULL),
    "interactive-late-glob-lite": PublishedNetwork(GuidedLate.method, _LITE),
}
"""The guided networks by the names of the published code."""


def published_state(model: GuidedSegmenter, *, values: int = VALUES) -> dict[str, Tensor]:
    """A model's weights as a published checkpoint holds them: names, fixed kernels, buffers.

    Args:
        model: any of the family.
        values: how many annotation values the guidance buffers of a shared head stand for; with 0
            there are none, as in the published interactive networks.
    """
    to_published = model.published_keys.to_published
    found = {to_published(key): tensor for key, tensor in model.state_dict().items()}
    if isinstance(model, GuidedLate | InteractiveLate):
        found["anno_enc.weight"] = fixed_annotation_kernel()
    last = [key for key in found if key.startswith("head.") and key.endswith("weight")][-1]
    found["decoder.weight"] = fixed_decoder_kernel(found[last].shape[0])
    if isinstance(model, GuidedLate) and model.shared and values:
        found |= {"z": torch.zeros(values, model.channels), "num_z": torch.zeros(values, 1)}
    return found
