"""Training from recipes: the loop, its parts, and the cache of a frozen encoder's maps."""

from __future__ import annotations

from fastfss.training.feature_cache import FeatureCache, build_cache
from fastfss.training.loop import TrainingResult, train
from fastfss.training.models import build_model
from fastfss.training.recipe import Recipe
from fastfss.training.recipe_files import list_recipes, load_recipe, recipe_digest, recipe_from

__all__ = [
    "FeatureCache",
    "Recipe",
    "TrainingResult",
    "build_cache",
    "build_model",
    "list_recipes",
    "load_recipe",
    "recipe_digest",
    "recipe_from",
    "train",
]
