from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss import MLC, SSP, create_encoder
from fastfss.methods import SelfSupportConfig
from fastfss.methods.self_support import select, self_support
from tests.methods.episodes import episode
from tests.methods.published_ssp import published_forward
from tests.tolerances import assert_close


def model(method: type[SSP] | type[MLC] = SSP, **options: object) -> SSP | MLC:
    torch.manual_seed(0)
    return method(create_encoder("resnet18"), layers=("layer2",), **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [SSP, MLC])
@torch.no_grad()
def test_a_batch_gives_what_its_episodes_give_alone(method: type[SSP] | type[MLC]) -> None:
    segmenter = model(method)
    images, masks, query = episode(batch=3, shots=2)
    together = segmenter.segment(query, segmenter.encode_support(images, masks)).logits
    for item in range(3):
        task = segmenter.encode_support(images[item : item + 1], masks[item : item + 1])
        alone = segmenter.segment(query[item : item + 1], task).logits
        assert_close(together[item : item + 1], alone)


@pytest.mark.parametrize("method", [SSP, MLC])
@torch.no_grad()
def test_shots_fitted_apart_and_merged_equal_shots_fitted_together(
    method: type[SSP] | type[MLC],
) -> None:
    segmenter = model(method)
    images, masks, query = episode(shots=3)
    together = segmenter.encode_support(images, masks)
    apart = [segmenter.encode_support(images[:, k : k + 1], masks[:, k : k + 1]) for k in range(3)]
    merged = apart[0].merge(*apart[1:])
    expected = segmenter.segment(query, together).logits
    assert_close(segmenter.segment(query, merged).logits, expected)


@torch.no_grad()
def test_shots_of_different_sizes_are_encoded_each_at_its_own() -> None:
    segmenter = model()
    images, masks, query = episode(shots=1, size=64)
    others, other_masks, _ = episode(shots=1, size=48, seed=1)
    task = segmenter.encode_support([images[:, 0], others[:, 0]], [masks[:, 0], other_masks[:, 0]])
    single = [
        segmenter.encode_support(images, masks),
        segmenter.encode_support(others, other_masks),
    ]
    expected = torch.cat([one.tensors["foreground"] for one in single], dim=1)
    assert_close(task.tensors["foreground"], expected)
    assert segmenter.segment(query, task).logits.shape == (1, 2, 64, 64)


@torch.no_grad()
def test_ways_share_one_encoding_and_the_largest_margin_wins() -> None:
    segmenter = model()
    images, masks, query = episode()
    first = segmenter.encode_support(images, masks)
    second = segmenter.encode_support(
        images, torch.zeros_like(masks).index_fill_(-1, torch.arange(9), 1)
    )
    calls = []
    segmenter.encoder.register_forward_hook(lambda *_: calls.append(1))
    both = segmenter.segment(query, [first, second])
    assert len(calls) == 1
    for way, task in enumerate([first, second]):
        alone = segmenter.segment(query, task).margins
        assert_close(both.margins[:, way : way + 1], alone)
    margins = both.margins
    best = margins.argmax(1) + 1
    assert torch.equal(both.labels, torch.where(margins.amax(1) > 0, best, 0))


def test_an_empty_foreground_scores_zero_and_does_not_fail() -> None:
    segmenter = model()
    images, masks, query = episode()
    with torch.no_grad():
        task = segmenter.encode_support(images, torch.zeros_like(masks))
        prediction = segmenter.segment(query, task)
    assert task.tensors["foreground"].abs().max() == 0
    assert prediction.logits.isfinite().all()


def test_a_zero_feature_scores_zero_and_leaves_the_others_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 16, 9, 7, generator=generator)
    features[:, :, 3, 2] = 0
    prototypes = torch.randn(2, 1, 16, generator=generator)
    head = self_support(features, *prototypes, SelfSupportConfig(), refine=True)
    assert head.final[0, :, 3, 2].abs().max() == 0
    assert head.final.isfinite().all()


def test_ignored_pixels_are_in_neither_prototype() -> None:
    segmenter = model(MLC)
    images, masks, _ = episode()
    ignored = masks.clone()
    ignored[..., :16, :] = 255
    with torch.no_grad():
        task = segmenter.encode_support(images, ignored)
        plain = segmenter.encode_support(images, masks)
    assert_close(task.tensors["foreground"], plain.tensors["foreground"])
    assert not torch.allclose(task.tensors["background"], plain.tensors["background"])


def test_selection_is_strict_and_falls_back_to_the_most_probable() -> None:
    config = SelfSupportConfig(fallback=2)
    foreground = torch.tensor([0.7, 0.71, 0.2, 0.3, 0.45])
    scores = torch.stack([(1 - foreground).log(), foreground.log()]).view(1, 2, 1, 5)
    chosen = select(scores, config)
    assert chosen[0, 0, 0].tolist() == [0, 1, 0, 0, 0]
    assert chosen[0, 1, 0].tolist() == [0, 0, 1, 1, 0]
    unsure = torch.full((1, 2, 1, 5), 0.0)
    unsure[0, 1, 0, 3:] = 0.1
    assert select(unsure, config)[0, 0, 0].tolist() == [0, 0, 0, 1, 1]


def test_selection_takes_maps_smaller_than_the_fallback() -> None:
    assert select(torch.zeros(1, 2, 1, 3), SelfSupportConfig()).sum() == 6


def test_the_second_pass_equals_one_made_from_scratch() -> None:
    """The update by changed positions must not drift from recomputing all of them."""
    from fastfss.ops import dense_match

    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 16, 9, 7, generator=generator, dtype=torch.float64)
    foreground, background = torch.randn(2, 2, 16, generator=generator, dtype=torch.float64)
    config = SelfSupportConfig(background_threshold=0.55)
    head = self_support(features, foreground, background, config, refine=True)
    assert head.second is not None
    chosen = head.second.selected
    assert not torch.equal(chosen, head.first.selected)
    local = dense_match(features, features, features, chosen[:, 1], scale=2.0)
    own = 0.3 * head.second.background_mean[:, :, None, None] + 0.7 * local
    first_local = dense_match(features, features, features, head.first.selected[:, 1], scale=2.0)
    first_own = 0.3 * head.first.background_mean[:, :, None, None] + 0.7 * first_local
    prototype = 0.5 * background[:, :, None, None] + 0.2 * first_own + 0.3 * own
    cosine = torch.nn.functional.cosine_similarity(features, prototype, dim=1)
    assert_close(head.second.scores[:, 0], 10 * cosine)


def test_a_training_step_moves_only_the_published_parameters() -> None:
    segmenter = model().train()
    images, masks, query = episode(batch=2, shots=2)
    target = masks[:, 0].clone()
    target[:, :4] = 255
    output = segmenter(images, masks, query, target)
    losses = segmenter.loss(output, target, masks)  # type: ignore[arg-type]
    losses["total"].backward()
    moved = {n.split(".")[1] for n, p in segmenter.named_parameters() if p.grad is not None}
    assert moved == {"layer2"}
    assert not any(m.training for m in segmenter.modules() if isinstance(m, torch.nn.BatchNorm2d))
    expected = (
        sum(losses[k] for k in ("first", "refined", "query_self")) + 0.2 * losses["support_self"]
    )
    assert_close(losses["total"], expected)


def test_several_layers_are_joined_on_the_first_ones_grid() -> None:
    torch.manual_seed(0)
    segmenter = MLC(create_encoder("resnet18"), layers=("layer2", "layer3"))
    with torch.no_grad():
        assert segmenter.features(torch.randn(1, 3, 65, 48)).shape == (1, 384, 9, 6)


@torch.no_grad()
def test_the_copy_for_inference_agrees_and_takes_the_models_tasks() -> None:
    segmenter = model()
    fast = segmenter.for_inference()
    images, masks, query = episode()
    expected = segmenter.segment(query, segmenter.encode_support(images, masks)).logits
    assert_close(fast.segment(query, fast.encode_support(images, masks)).logits, expected)
    assert fast.settings() == segmenter.settings()
    assert any(p.requires_grad for p in segmenter.parameters())


@torch.no_grad()
def test_bfloat16_for_inference_gives_nearly_the_same_labels() -> None:
    segmenter = model()
    images, masks, query = episode(size=96)
    expected = segmenter.segment(query, segmenter.encode_support(images, masks))
    fast = segmenter.for_inference(dtype=torch.bfloat16)
    task = fast.encode_support(images.bfloat16(), masks)
    prediction = fast.segment(query.bfloat16(), task)
    sure = expected.margins[:, 0].abs() > 0.2
    assert (prediction.labels == expected.labels)[sure].float().mean() > 0.99


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8), r"images: expected \(B, K, 3, H, W\)"),
        (
            torch.zeros(1, 1, 4, 8, 8),
            torch.zeros(1, 1, 8, 8),
            r"images\[0\]: expected \(B, 3, H, W\)",
        ),
        (torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 1, 8, 8), "masks: expected one mask an image"),
        (torch.zeros(2, 1, 3, 8, 8), torch.zeros(1, 1, 8, 8), "the same batch size"),
        ([], [], "at least one"),
    ],
    ids=["rank", "channels", "count", "batch", "none"],
)
def test_wrong_supports_are_named(images: Tensor, masks: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().encode_support(images, masks)


def test_wrong_queries_and_tasks_are_named() -> None:
    segmenter = model()
    images, masks, query = episode()
    with torch.no_grad():
        task = segmenter.encode_support(images, masks)
        with pytest.raises(ValueError, match=r"query: expected \(B, 3, H, W\), got \(3, 64, 64\)"):
            segmenter.segment(query[0], task)
        with pytest.raises(ValueError, match="task: expected at least one Task"):
            segmenter.segment(query, [])
        with pytest.raises(ValueError, match="method 'mlc'"):
            model(MLC).segment(query, task)
        wide = SSP(create_encoder("resnet18"), layers=("layer3",))
        with pytest.raises(
            ValueError, match=r"task: expected foreground prototypes \(1 or 1, K, 256\)"
        ):
            wide.segment(query, task)


@pytest.mark.parametrize("refine", [False, True])
@torch.no_grad()
def test_the_logits_equal_the_published_forward(refine: bool) -> None:
    segmenter = model(refine=refine)
    images, masks, query = episode(batch=2, shots=3)
    expected = published_forward(
        segmenter.encoder,
        "layer2",
        list(images.unbind(1)),
        list(masks.unbind(1)),
        query,
        refine=refine,
    )
    assert_close(segmenter.segment(query, segmenter.encode_support(images, masks)).logits, expected)
