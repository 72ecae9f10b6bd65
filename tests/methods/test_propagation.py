from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastfss import create_model
from fastfss.methods import Features, LabelPropagation, PropagationConfig
from fastfss.methods.propagation import CELLS, cell_keys, joined, label_shares


def model(**options: object) -> LabelPropagation:
    torch.manual_seed(0)
    made = create_model("propagation", encoder="resnet18", layers=("layer1", "layer2"), **options)
    assert isinstance(made, LabelPropagation)
    return made


def features(seed: int, size: tuple[int, int] = (40, 56)) -> Features:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return model().encode(torch.rand(1, 3, *size, generator=generator))


def test_cosines_of_a_joined_map_are_the_weighed_mean_of_the_maps_own() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, c, 5, 6, generator=generator) for c in (3, 8)]
    both = joined(maps, (1.0, 0.5))
    torch.testing.assert_close(both.norm(dim=1), torch.ones(1, 5, 6))
    own = [F.normalize(one, dim=1) for one in maps]
    wanted = sum(w * (m[..., 0, 0] @ m[..., 4, 5].T) for w, m in zip((1, 0.5), own, strict=True))
    torch.testing.assert_close(both[..., 0, 0] @ both[..., 4, 5].T, wanted / 1.5)


def test_far_is_the_softmax_over_all_keys() -> None:
    query, known = features(1), features(2)
    shares = torch.rand(3, *known.maps["features"].shape[-2:]).softmax(0)
    one = model()
    reference = one.reference(known, shares)
    found = one.far(query, [reference])
    maps = query.maps["features"][0]
    scores = one.config.far_scale * torch.einsum("chw,cp->hwp", maps, reference.keys)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True)) * reference.weights
    wanted = torch.einsum("hwp,lp->lhw", weights / weights.sum(-1, keepdim=True), reference.values)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sum(0), torch.ones_like(found[0]))


def test_positions_that_are_not_looked_at_are_background() -> None:
    query, known = features(1), features(2)
    shares = torch.rand(2, *known.maps["features"].shape[-2:]).softmax(0)
    one = model()
    reference = one.reference(known, shares)
    whole = one.far(query, [reference])
    where = torch.tensor([0, 5, 17])
    some = one.far(query, [reference], where)
    torch.testing.assert_close(some.flatten(1)[:, where], whole.flatten(1)[:, where])
    assert some[1].flatten().count_nonzero() <= 3 and float(some[0, -1, -1]) == 1
    assert not one.far(query, [reference], where[:0])[1].any()


def test_two_references_count_as_one_with_all_keys() -> None:
    query = features(1)
    one = model()
    shares = torch.rand(2, *query.maps["features"].shape[-2:]).softmax(0)
    apart = [one.reference(features(seed), shares) for seed in (2, 3)]
    double = one.far(query, [apart[0], apart[0]])
    torch.testing.assert_close(double, one.far(query, apart[:1]), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one.far(query, apart), double, atol=1e-3)
    weak = one.far(query, [apart[0], apart[1].weighted(0)])
    torch.testing.assert_close(weak, one.far(query, apart[:1]), rtol=1e-4, atol=1e-6)


def test_near_brings_the_same_frame_its_own_labels() -> None:
    one = model(config=PropagationConfig(near_scale=1e5, near_layers=2))
    frame = features(4)
    shares = torch.rand(2, *frame.maps["features"].shape[-2:]).softmax(0)
    torch.testing.assert_close(one.near(frame, [(frame, shares)]), shares, rtol=1e-3, atol=1e-3)


def test_no_key_mixes_labels_and_a_small_object_keeps_one() -> None:
    maps = torch.zeros(1, 2, 48, 48)
    maps[:, 0] = 1
    maps[:, :, 20, 20] = torch.tensor([0.0, 1.0])
    mask = torch.zeros(1, 48, 48)
    mask[0, 20, 20] = 1
    keys, weights = cell_keys(maps, label_shares(mask, (48, 48)))
    assert keys.shape == (1, 2, 2 * CELLS**2)
    objects = weights[0, CELLS**2 :].nonzero()[:, 0] + CELLS**2
    assert len(objects) == 1
    assert keys[0, :, objects[0]].tolist() == [0, 1]
    ground = keys[0, :, : CELLS**2]
    assert torch.equal(ground, torch.tensor([1.0, 0.0])[:, None].expand_as(ground))


def test_pixels_of_255_are_no_key() -> None:
    mask = torch.full((1, 32, 32), 255)
    mask[0, :16, :16] = 1
    mask[0, 24:, 24:] = 0
    shares = label_shares(mask, (8, 8))
    assert shares[0, 1].sum() == 16 and shares[0, 0].sum() == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_weights": (1.0,)}, "layer_weights: expected a positive number for each of 2"),
        ({"layer_weights": (1.0, 0.0)}, "layer_weights: expected a positive number"),
    ],
)
def test_weights_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**options)


@pytest.mark.parametrize("options", [{"far_weight": 1.5}, {"radius": -1}, {"near_layers": 0}])
def test_a_config_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PropagationConfig(**options)  # type: ignore[arg-type]


def test_the_encoder_is_frozen() -> None:
    assert not any(parameter.requires_grad for parameter in model().parameters())
