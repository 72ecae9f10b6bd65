from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fastfss
from fastfss import PANet, create_encoder
from tests.methods.published_panet import published_forward, published_head
from tests.tolerances import assert_close


def model(encoder: str = "resnet18", layer: str = "layer2", **options: object) -> PANet:
    torch.manual_seed(0)
    return PANet(create_encoder(encoder), layers=(layer,), **options).eval()  # type: ignore[arg-type]


def episode(
    batch: int = 1,
    ways: int = 1,
    shots: int = 1,
    queries: int = 1,
    size: tuple[int, int] = (65, 49),
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (B, W, K, 3, H, W), masks (B, W, K, H, W), queries and their masks."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    images = torch.randn(batch, ways, shots, 3, height, width, generator=generator)
    masks = torch.zeros(batch, ways, shots, height, width)
    query = torch.randn(batch, queries, 3, height, width, generator=generator)
    query_mask = torch.zeros(batch, queries, height, width, dtype=torch.int64)
    for way in range(ways):
        colour = 3 * torch.randn(3, 1, 1, generator=generator)
        for item in range(batch):
            for shot in range(shots):
                top, left = 7 + 3 * item + 5 * shot, 4 + 6 * way
                masks[item, way, shot, top : top + 25, left : left + 20] = 1
            rows = slice(5 + 30 * way, 30 + 30 * way)
            query_mask[item, :, rows, 8:30] = way + 1
            query[item] += colour * (query_mask[item] == way + 1).unsqueeze(1)
        images[:, way] += colour * masks[:, way].unsqueeze(2)
    return images, masks, query, query_mask


@pytest.mark.parametrize("encoder", ["resnet18", "panet_vgg16"])
@pytest.mark.parametrize(
    ("batch", "ways", "shots", "queries"), [(1, 1, 1, 1), (2, 2, 3, 1), (2, 3, 1, 2)], ids=str
)
def test_logits_and_alignment_loss_equal_the_published_form(
    encoder: str, batch: int, ways: int, shots: int, queries: int
) -> None:
    layer = "layer2" if encoder == "resnet18" else "conv5_3"
    segmenter = model(encoder, layer).train()
    images, masks, query, _ = episode(batch, ways, shots, queries)
    with torch.no_grad():
        output = segmenter(images, masks, query)
        logits, alignment = published_forward(
            segmenter.encoder, layer, images, (masks == 1).float(), (masks != 1).float(), query
        )
    assert_close(output.logits, logits)
    assert output.alignment is not None
    assert alignment > 0
    assert_close(output.alignment, alignment)


def test_gradients_equal_those_of_the_published_form() -> None:
    """In float64, head alone: pooling, scores and alignment, background wins over foreground."""
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(2, 2, 2, 6, 5, 7, generator=generator, dtype=torch.float64),
        torch.randn(2, 2, 6, 5, 7, generator=generator, dtype=torch.float64),
    ]
    masks = torch.rand(2, 2, 2, 33, 41, generator=generator) > 0.6
    backgrounds = torch.rand(2, 2, 2, 33, 41, generator=generator) > 0.5
    segmenter = model()
    gradients = []
    for ours in (True, False):
        supports, features = (leaf.clone().requires_grad_() for leaf in leaves)
        if ours:
            regions = segmenter.regions(masks, backgrounds)
            pooled = segmenter.pool_regions(supports.flatten(0, 2), regions.flatten(0, 2))
            foreground, background = pooled.unflatten(0, (2, 2, 2)).mean(dim=2).unbind(2)
            scores = segmenter.scores(
                features.flatten(0, 1),
                foreground.repeat_interleave(2, dim=0),
                background.mean(dim=1).repeat_interleave(2, dim=0),
            ).unflatten(0, (2, 2))
            alignment = segmenter.align(supports, regions, features, scores)
            logits = torch.nn.functional.interpolate(
                scores.transpose(0, 1).flatten(0, 1), (33, 41), mode="bilinear"
            )
        else:
            logits, alignment = published_head(
                supports, features, masks.double(), backgrounds.double()
            )
        (logits.square().mean() + alignment).backward()
        gradients.append((supports.grad, features.grad))
    for found, wanted in zip(*gradients, strict=True):
        assert found is not None
        assert wanted is not None
        assert_close(found, wanted)


def test_a_batch_gives_what_its_episodes_give_alone() -> None:
    segmenter = model().train()
    images, masks, query, query_mask = episode(batch=3, ways=2, shots=2, queries=2)
    masks[1, 0] = masks[1, 1] = 0  # its ways are nowhere in the prediction
    with torch.no_grad():
        together = segmenter(images, masks, query)
        alone = [
            segmenter(*(part[item : item + 1] for part in (images, masks, query)))
            for item in range(3)
        ]
    logits = together.logits.unflatten(0, (2, 3))  # query-major
    for item, one in enumerate(alone):
        assert_close(logits[:, item], one.logits)
        assert_close(together.prototypes[item : item + 1], one.prototypes)
    losses = torch.stack([one.alignment for one in alone])
    assert losses[1] == 0
    assert len(losses.unique()) == 3
    assert_close(together.alignment, losses.mean())
    targets = query_mask.flatten(0, 1)
    in_batch_order = together.logits.unflatten(0, (2, 3)).transpose(0, 1).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(in_batch_order, targets)
    assert_close(segmenter.loss(together, query_mask)["query"], expected)


@torch.no_grad()
def test_segmenting_with_tasks_equals_the_training_forward() -> None:
    segmenter = model()
    images, masks, query, _ = episode(batch=2, ways=3, shots=2)
    output = segmenter(images, masks, query)
    assert output.alignment is None, "evaluation needs none"
    tasks = [segmenter.encode_support(images[:, way], masks[:, way]) for way in range(3)]
    prediction = segmenter.segment(query[:, 0], tasks)
    assert_close(prediction.logits, output.logits)
    assert_close(prediction.margins, output.logits[:, 1:] - output.logits[:, :1])
    one = segmenter(images[:, 0], masks[:, 0], query[:, 0])
    assert_close(segmenter.segment(query[:, 0], tasks[0]).logits, one.logits)


@torch.no_grad()
def test_the_ways_share_the_mean_of_their_backgrounds() -> None:
    segmenter = model()
    images, masks, query, _ = episode(ways=2)
    tasks = [segmenter.encode_support(images[:, way], masks[:, way]) for way in range(2)]
    calls = []
    segmenter.encoder.register_forward_hook(lambda *_: calls.append(1))
    both = segmenter.segment(query[:, 0], tasks)
    assert len(calls) == 1
    features = segmenter.features(query[:, 0])
    background = sum(task.tensors["background"].mean(dim=1) for task in tasks) / 2
    foreground = torch.stack([task.tensors["foreground"].mean(dim=1) for task in tasks], dim=1)
    scores = segmenter.scores(features, foreground, background)
    cosine = torch.nn.functional.cosine_similarity(features, foreground[:, 1, :, None, None])
    assert_close(scores[:, 2], 20 * cosine)
    large = torch.nn.functional.interpolate(scores, query.shape[-2:], mode="bilinear")
    assert_close(both.logits, large)
    assert torch.equal(both.labels, large.argmax(dim=1))


@torch.no_grad()
def test_shots_fitted_apart_and_merged_equal_shots_fitted_together() -> None:
    segmenter = model()
    images, masks, query, _ = episode(shots=3)
    images, masks = images[:, 0], masks[:, 0]
    together = segmenter.encode_support(images, masks)
    apart = [segmenter.encode_support(images[:, k : k + 1], masks[:, k : k + 1]) for k in range(3)]
    expected = segmenter.segment(query[:, 0], together).logits
    merged = apart[0].merge(*apart[1:])
    assert_close(segmenter.segment(query[:, 0], merged).logits, expected)
    assert_close(
        merged.remove(1).tensors["background"], together.select([0, 2]).tensors["background"]
    )


@torch.no_grad()
def test_shots_of_different_sizes_are_encoded_each_at_its_own() -> None:
    segmenter = model()
    images, masks, _, _ = episode()
    others, other_masks, _, _ = episode(size=(48, 80), seed=1)
    together = segmenter.encode_support(
        [images[:, 0, 0], others[:, 0, 0]], [masks[:, 0, 0], other_masks[:, 0, 0]]
    )
    alone = [
        segmenter.encode_support(images[:, 0], masks[:, 0]),
        segmenter.encode_support(others[:, 0], other_masks[:, 0]),
    ]
    for key in ("foreground", "background"):
        assert_close(together.tensors[key], torch.cat([one.tensors[key] for one in alone], dim=1))


@torch.no_grad()
def test_ignored_pixels_are_background_as_published_or_in_neither_prototype() -> None:
    images, masks, _, _ = episode()
    images, masks = images[:, 0], masks[:, 0]
    with_ignored = masks.clone()
    with_ignored[..., :7, :] = 255
    published, excluding = model(), model(ignored="excluded")
    task = published.encode_support(images, with_ignored)
    plain = published.encode_support(images, masks)
    for key in ("foreground", "background"):
        assert torch.equal(task.tensors[key], plain.tensors[key])
    kept = excluding.encode_support(images, with_ignored)
    assert torch.equal(kept.tensors["foreground"], plain.tensors["foreground"])
    assert not torch.allclose(kept.tensors["background"], plain.tensors["background"])
    explicit = published.encode_support(images, with_ignored, (with_ignored == 0).float())
    assert torch.equal(kept.tensors["background"], explicit.tensors["background"])


@torch.no_grad()
def test_backgrounds_are_the_only_source_of_the_background_prototype() -> None:
    """As scribbles and boxes need: pixels of neither mask change nothing."""
    segmenter = model()
    images, masks, _, _ = episode(shots=2)
    images, masks = images[:, 0], masks[:, 0]
    strokes = torch.zeros_like(masks)
    strokes[..., 50:53, 10:40] = 1
    task = segmenter.encode_support(images, masks, strokes)
    only = segmenter.encode_support(images, strokes)
    assert_close(task.tensors["background"], only.tensors["foreground"])
    assert_close(
        task.tensors["foreground"], segmenter.encode_support(images, masks).tensors["foreground"]
    )
    lists = segmenter.encode_support(
        list(images.unbind(1)), list(masks.unbind(1)), list(strokes.bool().unbind(1))
    )
    assert torch.equal(lists.tensors["background"], task.tensors["background"])


@torch.no_grad()
def test_backgrounds_count_in_the_training_forward_too() -> None:
    segmenter = model().train()
    images, masks, query, _ = episode(ways=2, shots=2)
    other = masks.flip(1)  # the other way's object is in neither mask
    backgrounds = ((masks != 1) & (other != 1)).float()
    output = segmenter(images, masks, query, backgrounds)
    logits, alignment = published_forward(
        segmenter.encoder, "layer2", images, masks, backgrounds, query
    )
    assert_close(output.logits, logits)
    assert_close(output.alignment, alignment)
    assert not torch.allclose(output.logits, segmenter(images, masks, query).logits)


def test_an_absent_way_adds_nothing_to_the_alignment_loss() -> None:
    segmenter = model().train()
    images, masks, query, query_mask = episode(ways=2)
    masks[:, 1] = 0  # a zero prototype, which is the nearest nowhere
    output = segmenter(images, masks, query)
    labels = output.scores.argmax(dim=2)
    assert (labels == 1).any()
    assert not (labels == 2).any()
    _, expected = published_forward(
        segmenter.encoder, "layer2", images, masks, (masks != 1).float(), query
    )
    assert expected > 0
    assert_close(output.alignment, expected)
    segmenter.loss(output, query_mask)["total"].backward()
    gradients = [p.grad for p in segmenter.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_support_without_any_labelled_pixel_adds_nothing_to_the_alignment_loss() -> None:
    """Its mean over no pixel is NaN in the published code."""
    segmenter = model().train()
    images, masks, query, _ = episode(shots=2)
    backgrounds = (masks != 1).float()
    masks[:, :, 1], backgrounds[:, :, 1] = 0, 0
    with torch.no_grad():
        output = segmenter(images, masks, query, backgrounds)
        features = segmenter.features(query[:, 0]).unsqueeze(1)
        support = segmenter.features(images[:, 0, 0])[None, None]
        regions = segmenter.regions(masks, backgrounds)[:, :, :1]
        first = segmenter.align(support, regions, features, output.scores)
    assert first > 0
    assert_close(output.alignment, first / 2)


def test_an_empty_support_mask_scores_zero_and_does_not_fail() -> None:
    segmenter = model()
    images, masks, query, _ = episode()
    with torch.no_grad():
        task = segmenter.encode_support(images[:, 0], torch.zeros_like(masks[:, 0]))
        prediction = segmenter.segment(query[:, 0], task)
    assert task.tensors["foreground"].abs().max() == 0
    assert prediction.logits[:, 1].abs().max() == 0
    assert prediction.logits.isfinite().all()


@pytest.mark.parametrize("encoder", ["resnet18", "panet_vgg16"])
def test_a_training_step_reaches_every_parameter_that_is_used(encoder: str) -> None:
    layer = "layer3" if encoder == "resnet18" else "conv5_3"
    segmenter = model(encoder, layer).train()
    images, masks, query, query_mask = episode(batch=2, ways=2, shots=2)
    query_mask[..., :4, :] = 255
    output = segmenter(images, masks, query)
    losses = segmenter.loss(output, query_mask)
    assert_close(losses["total"], losses["query"] + losses["alignment"])
    losses["total"].backward()
    without = {n for n, p in segmenter.named_parameters() if p.grad is None}
    assert all(name.startswith("encoder.layer4.") for name in without)
    assert bool(without) == (encoder == "resnet18")
    assert not any(m.training for m in segmenter.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_alignment_weight_scales_the_loss_and_zero_leaves_it_out() -> None:
    images, masks, query, query_mask = episode()
    half = model(alignment_weight=0.5).train()
    losses = half.loss(half(images, masks, query), query_mask)
    assert_close(losses["total"], losses["query"] + 0.5 * losses["alignment"])
    none = model(alignment_weight=0).train()
    output = none(images, masks, query)
    assert output.alignment is None
    assert set(none.loss(output, query_mask)) == {"query", "total"}


@torch.no_grad()
def test_images_of_any_size_are_fitted_as_squares(tmp_path: Path) -> None:
    segmenter = model(size=64)
    segmenter.weights_origin = "given"
    pixels = np.random.default_rng(0).integers(0, 80, (60, 91, 3), dtype=np.uint8)
    mask = np.zeros((60, 91), np.uint8)
    mask[15:40, 20:60] = 1
    pixels[mask > 0] += 150
    task = segmenter.fit([(pixels, mask)], name="box")
    segmenter.save(tmp_path / "panet.safetensors")
    again = fastfss.create_model(
        "panet",
        encoder="resnet18",
        layers=("layer2",),
        size=64,
        weights=tmp_path / "panet.safetensors",
    )
    result = again.predict(pixels, task)
    assert result.labels.shape == (60, 91)
    assert np.array_equal(result.labels, segmenter.predict(pixels, task).labels)
    # A support segmented with its own prototypes.
    found, truth = result.mask(), mask > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.5


@torch.no_grad()
def test_scribbles_in_one_map_are_fitted_without_what_is_unlabelled() -> None:
    segmenter = model(size=64, ignored="excluded")
    segmenter.weights_origin = "given"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    strokes = np.full((64, 64), 255, np.uint8)
    strokes[20:24, 20:50], strokes[50:54, 5:60] = 1, 0
    task = segmenter.fit([(pixels, strokes)])
    image = segmenter.prepare(torch.from_numpy(pixels).permute(2, 0, 1))
    scribbled = torch.from_numpy(strokes)[None, None]
    expected = segmenter.encode_support(
        image.unsqueeze(1), (scribbled == 1).float(), (scribbled == 0).float()
    )
    for key in ("foreground", "background"):
        assert torch.equal(task.tensors[key], expected.tensors[key])


def test_published_checkpoints_and_torchvisions_file_load(tmp_path: Path) -> None:
    source = fastfss.create_model("panet")
    published = {
        f"module.{PANet.published_keys.to_published(key)}": value
        for key, value in source.state_dict().items()
    }
    assert "module.encoder.backbone.features.8.4.bias" in published
    torch.save(published, tmp_path / "panet.pth")
    again = fastfss.create_model("panet", weights=tmp_path / "panet.pth")
    assert again.fingerprint() == source.fingerprint()
    source.save(tmp_path / "ours.safetensors")
    again = fastfss.create_model("panet", weights=tmp_path / "ours.safetensors")
    assert again.fingerprint() == source.fingerprint()


@pytest.mark.parametrize(
    ("encoder", "layer"), [("resnet18", "layer2"), ("panet_vgg16", "conv5_3")], ids=str
)
@torch.no_grad()
def test_the_copy_for_inference_agrees_in_float32_and_nearly_in_bfloat16(
    encoder: str, layer: str
) -> None:
    segmenter = model(encoder, layer)
    images, masks, query, _ = episode(ways=2)
    images, query = images[0], query[0]
    for dtype in (torch.float32, torch.bfloat16):
        fast = segmenter.for_inference(dtype=dtype)
        predictions = []
        for one, kind in ((segmenter, torch.float32), (fast, dtype)):
            tasks = [one.encode_support(images[[way]].to(kind), masks[:, way]) for way in range(2)]
            predictions.append(one.segment(query.to(kind), tasks))
        expected, found = predictions
        assert found.logits.dtype == dtype
        if dtype == torch.float32:
            assert_close(found.logits, expected.logits)
        else:
            best = expected.logits.topk(2, dim=1).values
            sure = best[:, 0] - best[:, 1] > 0.4
            assert sure.float().mean() > 0.2
            assert (found.labels == expected.labels)[sure].float().mean() > 0.99
    assert fast.settings() == segmenter.settings()


def test_wrong_arguments_are_named() -> None:
    segmenter = model()
    images, masks, query, _ = episode(ways=2)
    with pytest.raises(ValueError, match=r"has no feature map 'layer3'; it has conv1_2"):
        model("panet_vgg16", "layer3")
    with pytest.raises(ValueError, match="ignored: expected one of background, excluded, got 'no'"):
        model(ignored="no")
    with pytest.raises(ValueError, match="alignment_weight: expected a number >= 0, got -1"):
        model(alignment_weight=-1)
    with pytest.raises(ValueError, match=r"backgrounds: expected \(B, K, H, W\)"):
        segmenter.encode_support(images[:, 0], masks[:, 0], masks)
    with pytest.raises(ValueError, match=r"backgrounds: expected \(1, 65, 49\) as the masks have"):
        segmenter.encode_support(images[:, 0], masks[:, 0], masks[:, 0, ..., 1:])
    with pytest.raises(ValueError, match=r"images: expected \(B, W, K, 3, H, W\)"):
        segmenter(images[0, 0], masks, query)
    with pytest.raises(ValueError, match=r"masks: expected \(1, 2, 1, H, W\) for these images"):
        segmenter(images, masks[:, :1], query)
    with pytest.raises(ValueError, match=r"query: expected \(1, N, 3, 65, 49\) for these images"):
        segmenter(images, masks, query[..., 1:])
    with pytest.raises(ValueError, match=r"backgrounds: expected \(1, 2, 1, 65, 49\)"):
        segmenter(images, masks, query, masks[..., 1:])
    with torch.no_grad():
        task = segmenter.encode_support(images[:, 0], masks[:, 0])
        with pytest.raises(ValueError, match="task: expected foreground prototypes"):
            model(layer="layer3").segment(query[:, 0], task)
        with pytest.raises(ValueError, match="method 'panet'"):
            other = fastfss.MLC(segmenter.encoder, layers=("layer2",))
            segmenter.segment(query[:, 0], other.encode_support(images[:, 0], masks[:, 0]))
