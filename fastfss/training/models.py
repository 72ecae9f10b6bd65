"""The model that a recipe trains."""

from __future__ import annotations

from fastfss.errors import expected
from fastfss.methods import FewShotSegmenter, create_model
from fastfss.training.recipe import Recipe


def build_model(recipe: Recipe) -> FewShotSegmenter:
    """The method that a recipe trains, with the weights that it starts from.

    Raises:
        ValueError: weights that the recipe leaves to the user.
    """
    config = recipe.model
    if not config.weights:
        wanted = 'what to start from: "imagenet", "random" or a file (--weights)'
        raise expected("model.weights", wanted, "nothing")
    model = create_model(
        config.method,
        encoder=config.encoder or None,
        weights=None if config.weights == "random" else config.weights,
        layers=config.layers or None,
        size=config.size,
        **config.options,
    )
    if any(parameter.requires_grad for parameter in model.encoder.parameters()):
        # What is deeper than the deepest map gets no gradient.
        names = [feature.name for feature in model.encoder.features]
        model.encoder.truncate_(max(model.layers, key=names.index))
    return model
