"""MLC: the baseline by default, joint training with a decoder, rectification, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastfss import MLC, Task, create_encoder, create_model
from fastfss.errors import CheckpointError
from fastfss.methods import LatentClasses, MiningConfig, MLCOutput, Rectification
from fastfss.methods.rectification import region_prototypes
from fastfss.weights import read_checkpoint, save_checkpoint
from tests.methods.episodes import episode
from tests.methods.published_mlc import published_forward
from tests.tolerances import assert_close


def model(**options: object) -> MLC:
    torch.manual_seed(0)
    return MLC(create_encoder("resnet18"), layers=("layer2",), **options).eval()  # type: ignore[arg-type]


def photographs(count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images of odd sizes with label maps: classes 1 to 3, background, ignored pixels."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        height, width = 61 + number, 50 + 3 * number
        labels = np.zeros((height, width), np.uint8)
        labels[5:30, 5:40] = 1
        labels[30:, :20] = 2
        labels[40:55, 25:45] = 3
        labels[:, -2:] = 255
        colours = rng.integers(0, 255, (256, 3))
        noise = rng.integers(-20, 20, (height, width, 3))
        found.append((np.clip(colours[labels] + noise, 0, 255).astype(np.uint8), labels))
    return found


# ---- the baseline


@pytest.mark.parametrize(("batch", "shots", "size"), [(1, 1, 64), (2, 3, 51)])
@torch.no_grad()
def test_the_logits_equal_the_published_forward(batch: int, shots: int, size: int) -> None:
    segmenter = model()
    images, masks, query = episode(batch, shots, size)
    masks[..., :3, :] = 255
    expected = published_forward(
        segmenter.encoder, "layer2", list(images.unbind(1)), list(masks.unbind(1)), query
    )
    assert_close(segmenter.segment(query, segmenter.encode_support(images, masks)).logits, expected)


def test_the_default_has_no_parameters_beside_the_encoders() -> None:
    assert all(key.startswith("encoder.") for key in model().state_dict())


def test_a_training_step_reaches_all_convolutions_and_nothing_else() -> None:
    segmenter = model().train()
    images, masks, query = episode(batch=2)
    loss = segmenter.loss(segmenter(images, masks, query), masks[:, 0])
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in segmenter.encoder.named_parameters():
        used = not name.startswith(("layer3", "layer4"))
        convolution = parameter.ndim == 4
        assert (parameter.grad is not None) == (used and convolution), name


# ---- joint training


def joint(segmenter: MLC, mined: int = 3) -> tuple[MLCOutput, dict[str, Tensor]]:
    images, masks, query = episode(batch=2)
    generator = torch.Generator().manual_seed(9)
    extra = torch.randn(mined, 3, 48, 80, generator=generator)
    pseudo = torch.randint(0, 6, (mined, 48, 80), generator=generator, dtype=torch.uint8)
    pseudo[:, :5] = 255
    output = segmenter(images, masks, query, extra)
    return output, segmenter.loss(output, masks[:, 0], pseudo)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_joint_loss_is_the_episodes_plus_the_weighted_branchs(weight: float) -> None:
    segmenter = model(latent_classes=5, latent_weight=weight).train()
    output, losses = joint(segmenter)
    assert output.latent.shape == (3, 6, 6, 10)
    images, masks, query = episode(batch=2)
    assert_close(losses["episode"], segmenter.loss(segmenter(images, masks, query), masks[:, 0]))
    assert_close(losses["total"], losses["episode"] + weight * losses["latent"])


def test_the_branchs_loss_is_the_mean_over_labelled_pixels() -> None:
    _, losses = joint(model(latent_classes=5))
    segmenter = model(latent_classes=5)
    generator = torch.Generator().manual_seed(9)
    extra = torch.randn(3, 3, 48, 80, generator=generator)
    pseudo = torch.randint(0, 6, (3, 48, 80), generator=generator)[:, 5:]
    logits = torch.nn.functional.interpolate(
        segmenter.latent_logits(extra), (48, 80), mode="bilinear", align_corners=True
    )
    logs = logits.log_softmax(dim=1)[:, :, 5:]
    assert_close(losses["latent"], -logs.gather(1, pseudo[:, None]).mean())


def test_both_branches_train_the_encoder_and_the_branch_trains_its_decoder() -> None:
    segmenter = model(latent_classes=5).train()
    _, losses = joint(segmenter)
    assert segmenter.decoder is not None
    losses["episode"].backward(retain_graph=True)
    assert all(p.grad is None for p in segmenter.decoder.parameters())
    weight = segmenter.encoder.get_parameter("layer2.0.conv1.weight")
    assert weight.grad is not None
    episode_alone = weight.grad.clone()
    losses["latent"].backward()
    assert not torch.equal(weight.grad, episode_alone)
    assert all(p.grad is not None for p in segmenter.decoder.parameters())


def test_the_decoder_uses_batch_statistics_and_the_encoder_does_not() -> None:
    segmenter = model(latent_classes=5).train()
    norms = {n: m.training for n, m in segmenter.named_modules() if "BatchNorm" in type(m).__name__}
    assert {name for name, training in norms.items() if training} == {"decoder.1"}


def test_a_model_without_a_branch_refuses_mined_images() -> None:
    with pytest.raises(ValueError, match="mined: expected a model made with latent_classes=n"):
        joint(model())


def test_a_joint_loss_needs_pseudo_masks() -> None:
    segmenter = model(latent_classes=5)
    output = MLCOutput(torch.zeros(1, 2, 8, 8), torch.zeros(1, 6, 2, 2))
    with pytest.raises(ValueError, match="pseudo_masks: expected one mask a mined image, got None"):
        segmenter.loss(output, torch.zeros(1, 8, 8))  # type: ignore[call-overload]


@pytest.mark.parametrize("count", [0, 255])
def test_a_wrong_number_of_latent_classes_is_named(count: int) -> None:
    with pytest.raises(ValueError, match="latent_classes: expected 1 to 254, or None"):
        model(latent_classes=count)


# ---- mining with images of one's own


def test_mining_takes_images_of_any_size_and_annotates_unlabelled_ones() -> None:
    segmenter = model()
    latent = segmenter.mine(photographs(), config=MiningConfig(clusters=4))
    assert latent.centroids.shape == (5, 128)
    image, labels = photographs()[2]
    mask = segmenter.pseudo_mask(image, latent, labels)
    assert mask.shape == labels.shape
    assert torch.equal(mask == 255, torch.from_numpy(labels == 255))
    assert set(mask.unique().tolist()) <= {0, 1, 2, 3, 4, 255}
    unlabelled = segmenter.pseudo_mask(image, latent)
    assert torch.equal(unlabelled[:, :-2], mask[:, :-2])
    again = segmenter.mine(photographs(), config=MiningConfig(clusters=4))
    assert torch.equal(again.centroids, latent.centroids)


def test_mining_names_the_sample_that_does_not_fit() -> None:
    pairs = photographs()
    with pytest.raises(ValueError, match=r"samples\[1\] labels"):
        model().mine([pairs[0], (pairs[1][0], pairs[0][1])])


def test_a_mined_mask_trains_the_branch_of_as_many_classes() -> None:
    segmenter = model(latent_classes=4)
    latent = segmenter.mine(photographs(), classes=(1, 2, 3), config=MiningConfig(clusters=4))
    image, labels = photographs()[0]
    mask = segmenter.pseudo_mask(image, latent, labels)
    images, masks, query = episode()
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    output = segmenter(images, masks, query, pixels)
    assert segmenter.loss(output, masks[:, 0], mask[None])["total"].isfinite()


# ---- rectification


def rectified() -> MLC:
    """A model whose rectifier has seen backgrounds and holds regions."""
    segmenter = model(rectify=Rectification()).train()
    for seed in range(2):
        segmenter(*episode(batch=2, seed=seed))
    segmenter.eval()
    segmenter.collect_regions(image for image, _ in photographs())
    return segmenter


def test_training_forwards_feed_the_global_background_and_evaluation_does_not() -> None:
    segmenter = model(rectify=Rectification())
    assert segmenter.rectifier is not None
    images, masks, query = episode(batch=2)
    plain = model().encode_support(images, masks).tensors["background"]
    task = segmenter.encode_support(images, masks)
    assert_close(task.tensors["background"], plain)
    assert int(segmenter.rectifier.updates) == 0
    segmenter.train()(images, masks, query)
    assert int(segmenter.rectifier.updates) == 1
    assert_close(segmenter.rectifier.background, plain.mean(dim=(0, 1)))
    later = segmenter.eval().encode_support(*episode(seed=5)[:2]).tensors["background"]
    unrectified = model().encode_support(*episode(seed=5)[:2]).tensors["background"]
    assert_close(later, 0.5 * unrectified + 0.5 * segmenter.rectifier.background)


@torch.no_grad()
def test_rectified_shots_fitted_apart_and_merged_equal_shots_fitted_together() -> None:
    segmenter = rectified()
    images, masks, query = episode(shots=3)
    together = segmenter.encode_support(images, masks)
    assert not torch.allclose(
        together.tensors["foreground"], model().encode_support(images, masks).tensors["foreground"]
    )
    apart = [segmenter.encode_support(images[:, k : k + 1], masks[:, k : k + 1]) for k in range(3)]
    assert_close(
        segmenter.segment(query, apart[0].merge(*apart[1:])).logits,
        segmenter.segment(query, together).logits,
    )


@torch.no_grad()
def test_regions_come_from_latent_classes_where_given() -> None:
    segmenter = model(rectify=Rectification())
    latent = segmenter.mine(photographs(), config=MiningConfig(clusters=4))
    images = [image for image, _ in photographs()]
    count = segmenter.collect_regions(images, latent, min_positions=2)
    assert segmenter.rectifier is not None
    expected = []
    for image in images:
        features = segmenter.features(segmenter.prepare(torch.from_numpy(image).permute(2, 0, 1)))
        expected.append(region_prototypes(features, latent.annotate(features), 2))
    assert count == len(torch.cat(expected)) > 0
    assert_close(segmenter.rectifier.regions, torch.cat(expected))
    assert segmenter.collect_regions([]) == 0


def test_a_model_without_rectification_refuses_regions() -> None:
    with pytest.raises(ValueError, match="rectify: expected a model made with rectify"):
        model().collect_regions([])


def test_a_rectified_training_step_gives_gradients() -> None:
    segmenter = rectified().train()
    images, masks, query = episode(batch=2)
    loss = segmenter.loss(segmenter(images, masks, query), masks[:, 0])
    assert isinstance(loss, Tensor)
    loss.backward()
    grad = segmenter.encoder.get_parameter("layer2.0.conv1.weight").grad
    assert grad is not None
    assert grad.isfinite().all()


# ---- copies and files


@torch.no_grad()
def test_the_copy_for_inference_agrees_and_has_no_decoder() -> None:
    segmenter = MLC(
        create_encoder("resnet18"), ("layer2",), latent_classes=5, rectify=Rectification()
    ).train()
    segmenter(*episode(batch=2))
    segmenter.eval().collect_regions(image for image, _ in photographs())
    fast = segmenter.for_inference()
    assert fast.decoder is None
    assert segmenter.decoder is not None
    images, masks, query = episode()
    expected = segmenter.segment(query, segmenter.encode_support(images, masks)).logits
    assert_close(fast.segment(query, fast.encode_support(images, masks)).logits, expected)
    # The copy keeps its averages when the training goes on.
    assert fast.rectifier is not None
    kept = fast.rectifier.background.clone()
    segmenter.train()(*episode(batch=2, seed=4))
    assert torch.equal(fast.rectifier.background, kept)


@torch.no_grad()
def test_bfloat16_for_inference_gives_nearly_the_same_labels() -> None:
    segmenter = rectified()
    images, masks, query = episode(size=96)
    expected = segmenter.segment(query, segmenter.encode_support(images, masks))
    fast = segmenter.for_inference(dtype=torch.bfloat16)
    prediction = fast.segment(query.bfloat16(), fast.encode_support(images.bfloat16(), masks))
    sure = expected.margins[:, 0].abs() > 0.2
    assert sure.float().mean() > 0.1
    assert (prediction.labels == expected.labels)[sure].float().mean() > 0.99


def test_a_training_file_loads_as_the_plain_method(tmp_path: Path) -> None:
    trained = model(latent_classes=5, rectify=Rectification())
    trained.save(tmp_path / "mlc.safetensors")
    assert any(k.startswith("decoder.") for k in read_checkpoint(tmp_path / "mlc.safetensors"))
    plain = create_model(
        "mlc", encoder="resnet18", layers=("layer2",), weights=tmp_path / "mlc.safetensors"
    )
    assert plain.state_dict().keys() == model().state_dict().keys()
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[key]), key


def test_a_file_for_inference_loads_as_the_plain_method(tmp_path: Path) -> None:
    trained = model(latent_classes=5)
    trained.for_inference().save(tmp_path / "mlc.safetensors")
    plain = create_model(
        "mlc", encoder="resnet18", layers=("layer2",), weights=tmp_path / "mlc.safetensors"
    )
    images, masks, query = episode()
    with torch.no_grad():
        expected = trained.segment(query, trained.encode_support(images, masks)).logits
        assert_close(plain.segment(query, plain.encode_support(images, masks)).logits, expected)


@pytest.mark.parametrize("folded", [False, True], ids=["as trained", "for inference"])
def test_a_rectified_model_comes_back_with_its_regions(tmp_path: Path, folded: bool) -> None:
    trained = rectified()
    (trained.for_inference() if folded else trained).save(tmp_path / "mlc.safetensors")
    back = create_model(
        "mlc",
        encoder="resnet18",
        layers=("layer2",),
        weights=tmp_path / "mlc.safetensors",
        rectify=Rectification(),
    )
    assert isinstance(back, MLC)
    assert back.rectifier is not None
    assert trained.rectifier is not None
    assert len(back.rectifier.regions) == len(trained.rectifier.regions) > 0
    images, masks, query = episode()
    with torch.no_grad():
        expected = trained.segment(query, trained.encode_support(images, masks)).logits
        assert_close(back.segment(query, back.encode_support(images, masks)).logits, expected)


def test_a_baseline_file_starts_joint_training(tmp_path: Path) -> None:
    baseline = model()
    baseline.save(tmp_path / "mlc.safetensors")
    torch.manual_seed(1)
    started = MLC(create_encoder("resnet18"), ("layer2",), latent_classes=5)
    assert started.decoder is not None
    drawn = started.decoder[0].weight.clone()
    started.load_checkpoint(read_checkpoint(tmp_path / "mlc.safetensors"), "mlc.safetensors")
    for key, tensor in baseline.state_dict().items():
        assert torch.equal(tensor, started.state_dict()[key]), key
    assert torch.equal(started.decoder[0].weight, drawn)
    trained = {n for n, p in started.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in baseline.named_parameters() if p.requires_grad} | {
        f"decoder.{n}" for n, _ in started.decoder.named_parameters()
    }


def test_training_goes_on_from_its_own_file(tmp_path: Path) -> None:
    trained = model(latent_classes=5)
    trained.save(tmp_path / "mlc.safetensors")
    torch.manual_seed(1)
    back = MLC(create_encoder("resnet18"), ("layer2",), latent_classes=5).train()
    back.load_checkpoint(read_checkpoint(tmp_path / "mlc.safetensors"), "mlc.safetensors")
    for key, tensor in trained.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[key]), key
    assert back.encoder.training
    assert not back.encoder.get_submodule("bn1").training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.0.weight": torch.zeros(1)}, "decoder|LatentDecoder"),
        ({"rectifier.regions": torch.zeros(3, 7)}, "Rectifier"),
        ({"rectifier.regions": torch.zeros(())}, "Rectifier"),
        ({"encoder.conv1.weight": torch.zeros(1)}, "TorchvisionResNet"),
        ({"other.weight": torch.zeros(1)}, "1 unexpected"),
    ],
    ids=["decoder", "regions", "scalar", "encoder", "unknown"],
)
def test_a_file_that_does_not_fit_changes_nothing(
    tmp_path: Path, change: dict[str, Tensor], message: str
) -> None:
    file = tmp_path / "wrong.safetensors"
    save_checkpoint(
        file, {**model(latent_classes=5, rectify=Rectification()).state_dict(), **change}
    )
    torch.manual_seed(3)
    target = MLC(create_encoder("resnet18"), ("layer2",), latent_classes=5, rectify=Rectification())
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        target.load_checkpoint(read_checkpoint(file), "wrong.safetensors")
    after = target.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_a_decoder_does_not_make_a_task_another_models(tmp_path: Path) -> None:
    image, labels = photographs()[0]
    trained, plain = model(latent_classes=5), model()
    plain.encoder.load_state_dict(trained.encoder.state_dict())
    trained.weights_origin = plain.weights_origin = "test"
    task = trained.fit([(image, labels)], mask_value=1)
    assert plain.predict(image, task).labels.shape == labels.shape
    task.save(tmp_path / "task.safetensors")
    assert Task.load(tmp_path / "task.safetensors").settings == plain.settings()


def test_a_task_of_another_rectification_is_refused() -> None:
    image, labels = photographs()[0]
    segmenter = rectified()
    segmenter.weights_origin = "test"
    task = segmenter.fit([(image, labels)], mask_value=1)
    segmenter.collect_regions([photographs()[1][0]])
    with pytest.raises(ValueError, match="task: expected a task with weights"):
        segmenter.predict(image, task)


def test_latent_classes_of_another_encoder_are_named() -> None:
    image, _ = photographs()[0]
    latent = LatentClasses(torch.eye(7, 64))
    with pytest.raises(ValueError, match=r"features: expected \(B, 64, h, w\), got \(1, 128"):
        model().pseudo_mask(image, latent)
