"""Text instead of masks: CLIP's towers, and the maps of where a label is in an image."""

from fastfss.text.cam import activation_maps
from fastfss.text.clip import ClipTower, load_tower, tower_of
from fastfss.text.labels import Label, LabelNotFoundError, TextLabels, label_names, load_clip
from fastfss.text.tokens import decode, encode, tokenize

__all__ = [
    "ClipTower",
    "Label",
    "LabelNotFoundError",
    "TextLabels",
    "activation_maps",
    "decode",
    "encode",
    "label_names",
    "load_clip",
    "load_tower",
    "tokenize",
    "tower_of",
]
