"""The public API, frozen: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

import fastfss
import fastfss.data
import fastfss.encoders
import fastfss.methods
import fastfss.ops
import fastfss.protocols
import fastfss.weights

PUBLIC = {
    fastfss: "MLC SSP Result Task create_encoder create_model list_encoders list_models model_info",
    fastfss.ops: "Explanation dense_correlation dense_match dense_match_sums explain "
    "masked_average_pool prototype_match",
    fastfss.methods: "FewShotSegmenter LatentClasses MLC MLCOutput MethodInfo MiningConfig "
    "Prediction PublishedScore Rectification SSP SSPOutput SelfSupportConfig create_model "
    "list_models model_info",
    fastfss.protocols: "ConfusionMeter FoldMeter",
}


def test_the_public_names_are_these() -> None:
    for module, names in PUBLIC.items():
        assert sorted(module.__all__) == sorted(names.split()), module.__name__
        assert all(hasattr(module, name) for name in module.__all__)
