"""Clicks in a frame answered by a model that is trained for them, the matcher's encoder or not."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfss.annotation import UNSAID, Annotation, annotation_mask
from fastfss.errors import expected
from fastfss.methods import Features, FewShotSegmenter
from fastfss.methods.frames import frame_size
from fastfss.methods.hints import hints_of


class ClickModel:
    """A model for clicks.

    Args:
        model: one that takes hints, as the default model does, in eval mode.

    Raises:
        ValueError: another model.
    """

    def __init__(self, model: FewShotSegmenter) -> None:
        if not model.takes_hints or model.frame != "aspect":
            wanted = 'a model that takes hints, such as create_model("default")'
            raise expected("click_model", wanted, model.method)
        self.model = model

    @property
    def about(self) -> dict[str, str]:
        """What its answers depend on."""
        return {"method": self.model.method, **self.model.settings()}

    def encode(self, image: Tensor) -> Features:
        """The features of an image, uint8 (3, H, W)."""
        return self.model.encode(self.model.prepare(image))

    def answer(
        self,
        features: Features,
        said: Annotation,
        before: Tensor | None,
        size: tuple[int, int],
    ) -> Tensor:
        """The probability (H, W) of the object.

        Args:
            features: of the frame.
            said: points and strokes in it.
            before: bool (H, W), the mask that the last of these are about; needed where nothing
                positive is said.
            size: of the frame.
        """
        model, width = self.model, self.model.point_width(size)
        if said.positive and bool((said.rasterize(size) == 1).any()):
            support = annotation_mask(said, size, unsaid=model.unsaid, width=width)
        elif before is not None:
            support = said.rasterize(size, width=width)
            support.masked_fill_((support == UNSAID) & before, 1)
        else:
            return torch.zeros(size)
        wide = features.to(model.device, next(model.parameters()).dtype)
        task = model.fit_from([wide], [support[None].to(model.device)])
        _, seen = frame_size(*size, model.frame, model.size)
        prior = None if before is None else before.float()
        hints = hints_of(said.rasterize(size), seen, prior).to(model.device)
        found = model.segment_hinted(wide, [task], [hints], size)
        return found.probabilities[0, 0].float().cpu()
