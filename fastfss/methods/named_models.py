"""Models with weights, by a name: what to take when one does not want to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastfss.weights import packaged_weights

DEFAULT, DEFAULT_VIDEO = "default", "default-video"


@dataclass(frozen=True)
class NamedModel:
    """What a name of create_model stands for.

    Attributes:
        method: the name in the registry.
        encoder: its encoder.
        about: one line.
        packaged: the package's file with its weights, or with the encoder's among others; None:
            the encoder's are downloaded.
        layers, size: as create_model takes them.
        encoder_options: as create_encoder takes them.
        options: of the method.
    """

    method: str
    encoder: str
    about: str
    packaged: str | None = None
    layers: tuple[str, ...] | None = None
    size: int | None = None
    encoder_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> str | Path:
        """What create_model takes."""
        return "imagenet" if self.packaged is None else packaged_weights(self.packaged)


NAMED_MODELS = {
    DEFAULT: NamedModel(
        "cue-fusion",
        "mobilenet_v2_tf",
        "the package's own weights: nothing to download",
        packaged="default.safetensors",
        size=560,
        options={"scales": (1.0, 0.714)},
    ),
    DEFAULT_VIDEO: NamedModel(
        "propagation",
        "mobilenet_v2_tf",
        "label propagation with the default model's encoder, for videos: nothing to download",
        packaged="default.safetensors",
    ),
    "default-large": NamedModel(
        "ssp",
        "timm:vit_small_patch14_reg4_dinov2.lvd142m",
        "SSP's rule on DINOv2, downloaded by timm (88 MB); better and slower",
        layers=("blocks.11",),
        size=518,
        encoder_options={"final_norm": True},
    ),
}
"""Methods, encoders and weights that have one name together, such as "default"."""
