"""FCN-32s, which the guided networks grew out of: classes of its own, and no support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from fastfss.encoders import Encoder
from fastfss.errors import expected
from fastfss.methods.guided import GuidedSegmenter, card
from fastfss.methods.interactive import class_head


class FCN32s(GuidedSegmenter):
    """FCN-32s: `model(images)` gives the logits of its classes. It takes no support.

    Published as fcn32s and its lite form with 21 classes, as fgbg and its lite form with two:
    what the guided networks are compared with.

    Args:
        encoder: published with "fcn_vgg16" and "fcn_vgg16_lite".
        layers: the feature map to classify; published: fc7.
        size: see FewShotSegmenter.
        classes: background included.
    """

    method = "fcn32s"
    info = card(
        "FCN-32s, unguided",
        ("fcn_vgg16", "fcn_vgg16_lite"),
        "three golden cases of 21 and 2 classes",
    )
    head_keys = ("head.weight",)
    few_shot = False

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("fc7",),
        size: int | None = None,
        *,
        classes: int = 21,
    ) -> None:
        super().__init__(encoder, layers, size)
        if classes < 2:
            raise expected("classes", "at least 2, background included", str(classes))
        self.head = class_head(self.channels, classes)

    def encode_support(self, images: object, masks: object) -> NoReturn:
        """Raise TypeError: the network knows its classes from training."""
        raise _no_support()

    def segment(self, query: object, task: object, output_size: object = None) -> NoReturn:
        """Raise TypeError: call the model with the images alone."""
        raise _no_support()

    def maps(self, images: object) -> NoReturn:
        """Raise TypeError, as encode_support."""
        raise _no_support()

    def support_from(self, features: object, masks: object) -> NoReturn:
        """Raise TypeError, as encode_support."""
        raise _no_support()

    def segment_from(self, features: object, task: object, output_size: object = None) -> NoReturn:
        """Raise TypeError, as segment."""
        raise _no_support()

    def forward(  # type: ignore[override]
        self, images: Tensor, output_size: tuple[int, int] | None = None
    ) -> Tensor:
        """Logits (B, classes, H, W) of images (B, 3, H, W), at their own size or another."""
        scores = self.head(self.features(images))
        return self.decode(scores, (images.shape[2], images.shape[3]), output_size)


def _no_support() -> TypeError:
    return TypeError(
        "fcn32s takes no support: its classes are those that it was trained on; call "
        "model(images) for their logits"
    )
