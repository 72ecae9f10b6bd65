"""Methods whose shots have one size and pass through the network as one batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from fastfss.methods.base import FewShotSegmenter
from fastfss.methods.features import Features, stacked_features
from fastfss.methods.shots import Images, stacked_shots
from fastfss.task import Task


class StackedSegmenter(FewShotSegmenter):
    """A method that makes its Task of the maps of all shots together."""

    @property
    @abstractmethod
    def map_names(self) -> Sequence[str]:
        """The maps of `encode` that a Task is made of."""

    @abstractmethod
    def support_of(self, maps: Mapping[str, Tensor], masks: Tensor) -> Task:
        """The Task of a support set.

        Args:
            maps: of `encode`, (B * K, C, h, w), the shots of an episode side by side.
            masks: (B, K, H, W) of {0, 1, 255}.
        """

    def encode_support(self, images: Images, masks: Images) -> Task:
        """Turn a support set into a Task; all shots have one size. See FewShotSegmenter."""
        shots, shot_masks = stacked_shots(images, masks)
        return self.support_of(self.maps(shots.flatten(0, 1)), shot_masks)

    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """The same of images that are encoded already; see FewShotSegmenter."""
        return self.support_of(*stacked_features(features, self.map_names, masks))


def apart(
    tensors: Mapping[str, Tensor],  # (B * K, ...)
    masks: Tensor,  # (B, K, H, W)
) -> dict[str, Tensor]:  # (B, K, ...)
    """The tensors of a Task, each shot for itself."""
    return {name: one.unflatten(0, masks.shape[:2]) for name, one in tensors.items()}
