"""Published key names and ours, in both directions.

The names of SSP and MLC checkpoints and of the deep-stem encoder files that they start from. In
fastfss both methods hold the encoder as `encoder`, with the encoder file's own names below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fastfss.errors import CheckpointError


@dataclass(frozen=True)
class KeyMap:
    """Published key names and ours, as pairs of prefixes of which the first that fits counts.

    Args:
        name: what the published names belong to, for messages.
        prefixes: (published prefix, our prefix) pairs.

    Examples:
        >>> SSP_KEYS.to_ours("layer0.1.weight")
        'encoder.bn1.weight'
        >>> SSP_KEYS.to_published("encoder.layer3.5.bn3.bias")
        'layer3.5.bn3.bias'
    """

    name: str
    prefixes: tuple[tuple[str, str], ...]

    def to_ours(self, key: str) -> str:
        """Our name for a published key; a key that fits no pair stays as it is."""
        return _replace(key, self.prefixes) or key

    def to_published(self, key: str) -> str:
        """The published name for one of our keys; a key that fits no pair stays as it is."""
        return _replace(key, tuple((ours, theirs) for theirs, ours in self.prefixes)) or key

    def covers(self, key: str) -> bool:
        """Whether a published key has a name of ours."""
        return _replace(key, self.prefixes) is not None


_STAGES = tuple((f"layer{stage}.", f"encoder.layer{stage}.") for stage in (1, 2, 3))

ENCODER_KEYS = KeyMap("encoder", (("conv1.", "encoder.conv1."), ("bn1.", "encoder.bn1."), *_STAGES))
"""Of the deep-stem encoder file itself (pretrained/resnet50.pth)."""
FLAT_STEM_KEYS = KeyMap(
    "flat-stem encoder",
    (
        ("conv1.", "encoder.conv1.0."),
        ("bn1.", "encoder.conv1.1."),
        ("conv2.", "encoder.conv1.3."),
        ("bn2.", "encoder.conv1.4."),
        ("conv3.", "encoder.conv1.6."),
        ("bn3.", "encoder.bn1."),
        *_STAGES,
    ),
)
"""Of the same encoder with its stem written flat, as in PFENet's files."""
SSP_KEYS = KeyMap("SSP", (("layer0.0.", "encoder.conv1."), ("layer0.1.", "encoder.bn1."), *_STAGES))
"""Of SSP's checkpoints."""
MLC_KEYS = KeyMap(
    "MLC",
    tuple((f"backbone.{theirs}", ours) for theirs, ours in ENCODER_KEYS.prefixes),
)
"""Of MLC's checkpoints."""


def deep_stem_keys(keys: Iterable[str]) -> KeyMap:
    """Tell from its keys which of the published layouts a deep-stem encoder's tensors have.

    Args:
        keys: the keys of a checkpoint.

    Returns:
        The map whose stem convolution is among them; ENCODER_KEYS if none is.
    """
    keys = set(keys)
    for first, found in (
        ("layer0.0.0.weight", SSP_KEYS),
        ("backbone.conv1.0.weight", MLC_KEYS),
        ("conv1.weight", FLAT_STEM_KEYS),
    ):
        if first in keys:
            return found
    return ENCODER_KEYS


def convert_keys(
    tensors: Mapping[str, Tensor], source: KeyMap, target: KeyMap
) -> dict[str, Tensor]:
    """Rename a checkpoint from one published layout to another.

    Args:
        tensors: key to tensor, with the names of `source`.
        source: the layout that they have.
        target: the layout wanted.

    Returns:
        The same tensors, in the same order, with the names of `target`.

    Raises:
        CheckpointError: keys that `source` does not name.
    """
    unknown = [key for key in tensors if not source.covers(key)]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} keys are not of the {source.name} layout: {', '.join(unknown[:8])}"
        )
    return {target.to_published(source.to_ours(key)): value for key, value in tensors.items()}


def _replace(key: str, prefixes: tuple[tuple[str, str], ...]) -> str | None:
    for old, new in prefixes:
        if key.startswith(old):
            return new + key[len(old) :]
    return None
