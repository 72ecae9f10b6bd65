"""Text instead of masks: CLIP's towers, and the maps of where a label is in an image."""

from fastfss.text.clip import ClipTower, load_tower, tower_of
from fastfss.text.tokens import decode, encode, tokenize

__all__ = ["ClipTower", "decode", "encode", "load_tower", "tokenize", "tower_of"]
