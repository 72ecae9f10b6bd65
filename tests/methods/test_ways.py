from __future__ import annotations

import torch

from fastfss.methods.prediction import Prediction
from fastfss.methods.ways import merge_ways
from tests.tolerances import assert_close


def test_one_way_keeps_its_pair() -> None:
    pairs = torch.randn(2, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    prediction = merge_ways(pairs)
    assert torch.equal(prediction.logits, pairs[:, 0])
    assert_close(prediction.margins, pairs[:, :, 1] - pairs[:, :, 0])


def test_a_margin_is_the_distance_to_the_best_other_score() -> None:
    # Whole numbers, so that there are ties between ways and with the background.
    pairs = torch.randint(-2, 3, (2, 3, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    prediction = merge_ways(pairs.float())
    scores = [pairs[:, :, 0].amax(1), *pairs[:, :, 1].unbind(1)]
    assert torch.equal(prediction.logits, torch.stack(scores, 1).float())
    for way in range(1, 4):
        others = [score for index, score in enumerate(scores) if index != way]
        wanted = scores[way] - torch.stack(others).amax(0)
        assert torch.equal(prediction.margins[:, way - 1], wanted.float())
    best = prediction.margins.argmax(1) + 1
    positive = prediction.margins.amax(1) > 0
    assert torch.equal(prediction.labels[positive], best[positive])


def test_of_equal_logits_the_first_wins() -> None:
    logits = torch.randint(3, (2, 4, 9, 7), generator=torch.Generator().manual_seed(0)).float()
    labels = Prediction(logits, logits[:, 1:]).labels
    assert labels.dtype == torch.int64
    for label in range(4):
        before = logits[:, :label].amax(1) if label else torch.full((2, 9, 7), -1.0)
        wanted = (logits[:, label] == logits.amax(1)) & (before < logits[:, label])
        assert torch.equal(labels == label, wanted)
