from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fastfss
from fastfss import PFENet, Task, create_encoder, create_model
from fastfss.methods import pfenet
from fastfss.weights import CheckpointError, save_checkpoint
from tests.encoders.helpers import with_statistics
from tests.methods.published_pfenet import published_forward, resize
from tests.tolerances import assert_close

SIZE = 65
PYRAMID = (6, 5, 3, 2)  # at 65 pixels ResNet-18's layer3 has 5 x 5 positions


def model(encoder: str = "resnet18", **options: object) -> PFENet:
    torch.manual_seed(0)
    options = {"pyramid": PYRAMID, "size": SIZE, **options}
    made = PFENet(create_encoder(encoder), **options)  # type: ignore[arg-type]
    with_statistics(made.encoder)
    return made.eval()


def episode(
    batch: int = 1, shots: int = 1, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    images = torch.randn(batch, shots, 3, height, width, generator=generator)
    masks = torch.zeros(batch, shots, height, width)
    for shot in range(shots):
        top = height // 5 + 3 * shot
        masks[:, shot, top : top + height // 2, width // 4 : 3 * width // 4] = 1
    masks[..., :3, :] = 255
    images += 2 * (masks == 1).unsqueeze(2)
    return images, masks, torch.randn(batch, 3, height, width, generator=generator)


@pytest.mark.parametrize("pyramid", [PYRAMID, (1.0, 0.6, 0.3), (7,)], ids=str)
@pytest.mark.parametrize("encoder", ["resnet18", "vgg16_bn"])
@torch.no_grad()
def test_the_logits_equal_the_published_forward(encoder: str, pyramid: tuple[float, ...]) -> None:
    layers = {"vgg16_bn": ("conv3_3", "conv4_3", "conv5_3")}.get(encoder)
    options = {} if layers is None else {"layers": layers}
    segmenter = model(encoder, pyramid=pyramid, **options)
    images, masks, query = episode(batch=2, shots=3)
    wanted, inner = published_forward(
        segmenter, list(images.unbind(1)), list(masks.unbind(1)), query
    )
    task = segmenter.encode_support(images, masks)
    assert_close(segmenter.segment(query, task).logits, wanted)
    output = segmenter(images, masks, query)
    assert_close(output.logits, wanted)
    for ours, theirs in zip(output.auxiliary, inner, strict=True):
        assert_close(ours, theirs)


@torch.no_grad()
def test_a_batch_gives_what_its_episodes_give_alone() -> None:
    segmenter = model()
    images, masks, query = episode(batch=3, shots=2)
    together = segmenter.segment(query, segmenter.encode_support(images, masks)).logits
    for item in range(3):
        task = segmenter.encode_support(images[item : item + 1], masks[item : item + 1])
        alone = segmenter.segment(query[item : item + 1], task).logits
        assert_close(together[item : item + 1], alone)


@torch.no_grad()
def test_one_task_serves_a_batch_of_queries() -> None:
    segmenter = model()
    images, masks, _ = episode(shots=2)
    _, _, queries = episode(batch=3, seed=1)
    task = segmenter.encode_support(images, masks)
    together = segmenter.segment(queries, task).logits
    alone = [segmenter.segment(query.unsqueeze(0), task).logits for query in queries]
    assert_close(together, torch.cat(alone))


@torch.no_grad()
def test_shots_fitted_apart_and_merged_equal_shots_fitted_together() -> None:
    segmenter = model()
    images, masks, query = episode(shots=3)
    together = segmenter.encode_support(images, masks)
    apart = [segmenter.encode_support(images[:, k : k + 1], masks[:, k : k + 1]) for k in range(3)]
    merged = apart[0].merge(*apart[1:])
    assert_close(segmenter.segment(query, merged).logits, segmenter.segment(query, together).logits)
    first = merged.select([0])
    assert_close(segmenter.segment(query, first).logits, segmenter.segment(query, apart[0]).logits)


@pytest.mark.parametrize("together", [1, 4, 16])
@torch.no_grad()
def test_ways_share_one_encoding_and_the_largest_margin_wins(
    monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(pfenet, "DECODED_TOGETHER", together)
    segmenter = model()
    images, masks, query = episode(batch=2, shots=2)
    tasks = [segmenter.encode_support(images, masks)]
    for seed in (1, 2):  # of batch 1, with one shot
        images, masks, _ = episode(seed=seed)
        tasks.append(segmenter.encode_support(images, masks.flip(-1)))
    calls: list[int] = []
    segmenter.encoder.register_forward_hook(lambda *_: calls.append(1))
    every = segmenter.segment(query, tasks)
    assert len(calls) == 1
    for way, task in enumerate(tasks):
        alone = segmenter.segment(query, task).margins
        assert_close(every.margins[:, way : way + 1], alone)
    best = every.margins.argmax(1) + 1
    assert torch.equal(every.labels, torch.where(every.margins.amax(1) > 0, best, 0))


@torch.no_grad()
def test_images_need_not_be_square() -> None:
    segmenter = model(pyramid=(1.0, 0.5))
    images, masks, query = episode(batch=2, shots=2, size=(65, 97))
    prediction = segmenter.segment(query, segmenter.encode_support(images, masks))
    assert prediction.logits.shape == (2, 2, 65, 97)
    turned = segmenter.segment(query, segmenter.encode_support(images, masks), (40, 30))
    assert turned.logits.shape == (2, 2, 40, 30)
    # The support may have another shape than the query.
    others, other_masks, _ = episode(batch=2, size=(73, 57))
    task = segmenter.encode_support(others, other_masks)
    wanted, _ = published_forward(segmenter, [others[:, 0]], [other_masks[:, 0]], query[..., :65])
    assert_close(segmenter.segment(query[..., :65], task).logits, wanted)


@torch.no_grad()
def test_masks_may_have_another_size_than_their_images() -> None:
    segmenter = model()
    images, masks, query = episode()
    large = masks.repeat_interleave(3, -1).repeat_interleave(3, -2)
    logits = segmenter.segment(query, segmenter.encode_support(images, large)).logits
    assert logits.shape == (1, 2, SIZE, SIZE)


# ---- Training


def test_a_training_step_moves_only_the_head() -> None:
    segmenter = model().train()
    images, masks, query = episode(batch=2, shots=2)
    target = (masks[:, 0] == 1).long()
    target[:, :4] = 255
    losses = segmenter.loss(segmenter(images, masks, query), target)
    losses["total"].backward()
    trained = {name for name, p in segmenter.named_parameters() if p.grad is not None}
    head = {name for name, _ in segmenter.named_parameters() if not name.startswith("encoder.")}
    assert trained == head
    assert all(segmenter.get_parameter(name).grad.abs().sum() > 0 for name in head)  # type: ignore[union-attr]
    assert not any(p.requires_grad for p in segmenter.encoder.parameters())
    assert_close(losses["total"], losses["main"] + losses["auxiliary"])


def test_the_split_products_have_the_gradients_of_the_joined_ones() -> None:
    segmenter = model(batch_statistics=False)
    images, masks, query = episode(batch=2, shots=2)
    direction = torch.randn(2, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    gradients = []
    names = (
        "init_merge.1.0.weight",
        "init_merge.0.0.weight",
        "res1.0.weight",
        "down_supp.0.weight",
    )
    for published in (False, True):
        segmenter.zero_grad()
        if published:
            pairs = list(images.unbind(1)), list(masks.unbind(1))
            logits, _ = published_forward(segmenter, *pairs, query)
        else:
            logits = segmenter(images, masks, query).logits
        (logits * direction).sum().backward()
        gradients.append([segmenter.get_parameter(name).grad.clone() for name in names])  # type: ignore[union-attr]
    for ours, wanted in zip(*gradients, strict=True):
        # float32 sums over thousands of positions, in another order.
        assert (ours - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize("statistics", [True, False])
def test_the_frozen_encoders_running_statistics_move_only_as_published(statistics: bool) -> None:
    segmenter = model(batch_statistics=statistics).train()
    images, masks, query = episode(batch=2, shots=2)
    before = {name: b.clone() for name, b in segmenter.encoder.named_buffers()}
    segmenter(images, masks, query)
    moved = {
        name for name, b in segmenter.encoder.named_buffers() if not torch.equal(b, before[name])
    }
    assert moved == (set(before) if statistics else set())
    if statistics:
        # The query, then each shot alone.
        count = dict(segmenter.encoder.named_buffers())["layer4.1.bn2.num_batches_tracked"]
        assert count == 3


def test_the_running_statistics_see_the_query_first_and_then_each_shot() -> None:
    segmenter = model().train()
    norm = segmenter.encoder.get_submodule("bn1")
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    images, masks, query = episode(batch=2, shots=2)
    segmenter(images, masks, query)
    first = segmenter.encoder.get_submodule("conv1")
    wanted = [first(one) for one in (query, images[:, 0], images[:, 1])]
    assert len(seen) == 3
    for ours, theirs in zip(seen, wanted, strict=True):
        assert_close(ours, theirs)


def test_dropout_is_the_published_one_and_rests_in_evaluation() -> None:
    segmenter = model()
    rates = {
        name: module.p
        for name, module in segmenter.named_modules()
        if isinstance(module, nn.Dropout2d)
    }
    assert rates.pop("down_query.2") == rates.pop("down_supp.2") == 0.5
    assert set(rates) == {"cls.2", *(f"inner_cls.{n}.2" for n in range(4))}
    assert set(rates.values()) == {0.1}
    images, masks, query = episode()
    with torch.no_grad():
        again = [segmenter(images, masks, query).logits for _ in range(2)]
        assert torch.equal(*again)
        segmenter.train()
        segmenter.encoder.eval()
        assert not torch.equal(*(segmenter(images, masks, query).logits for _ in range(2)))


def test_the_auxiliary_weight_is_an_option() -> None:
    images, masks, query = episode()
    target = (masks[:, 0] == 1).long()
    for weight in (0.0, 0.4):
        segmenter = model(auxiliary_weight=weight)
        losses = segmenter.loss(segmenter(images, masks, query), target)
        assert_close(losses["total"], losses["main"] + weight * losses["auxiliary"])


# ---- Use


@torch.no_grad()
def test_the_copy_for_inference_agrees_and_takes_the_models_tasks() -> None:
    segmenter = model()
    fast = segmenter.for_inference()
    images, masks, query = episode(shots=2)
    wanted = segmenter.segment(query, segmenter.encode_support(images, masks)).logits
    assert_close(fast.segment(query, fast.encode_support(images, masks)).logits, wanted)
    assert fast.settings() == segmenter.settings()


@torch.no_grad()
def test_bfloat16_for_inference_gives_nearly_the_same_labels() -> None:
    segmenter = model()
    images, masks, query = episode(shots=2)
    wanted = segmenter.segment(query, segmenter.encode_support(images, masks))
    fast = segmenter.for_inference(dtype=torch.bfloat16)
    task = fast.encode_support(images.bfloat16(), masks)
    prediction = fast.segment(query.bfloat16(), task)
    assert prediction.logits.dtype == torch.bfloat16
    spread = wanted.margins.std()
    assert (prediction.margins.float() - wanted.margins).abs().max() < 0.1 * spread
    sure = wanted.margins[:, 0].abs() > 0.1 * spread
    assert sure.float().mean() > 0.5
    assert torch.equal(prediction.labels[sure], wanted.labels[sure])


def picture(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 80, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : 3 * height // 4, width // 3 : 2 * width // 3] = 255
    pixels[mask > 0] += 150
    return Image.fromarray(pixels), mask


@pytest.mark.filterwarnings("ignore:the head of PFENet has random weights")
def test_images_of_all_sizes_are_fitted_and_predicted(tmp_path: Path) -> None:
    segmenter = model()
    image, mask = picture(71, 53)
    image.save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    shots = [
        (tmp_path / "photo.png", tmp_path / "mask.png"),
        picture(30, 200),
        picture(64, 64),
    ]
    task = segmenter.fit(shots, name="box")
    assert task.shots == 3
    for height, width in ((50, 91), (300, 40), (64, 64), (65, 65)):
        query, _ = picture(height, width)
        result = segmenter.predict(np.asarray(query), [task, task.select([0])])
        assert result.labels.shape == (height, width)
        assert result.scores.shape == (2, height, width)
        assert np.isfinite(result.scores).all()


def test_a_model_of_random_weights_says_so() -> None:
    segmenter = create_model("pfenet", encoder="pfenet_vgg16_bn", size=65)
    with pytest.warns(UserWarning, match="the head of PFENet has random weights"):
        segmenter.fit([picture(30, 40)])


@torch.no_grad()
def test_saved_and_published_files_give_the_same_model(tmp_path: Path) -> None:
    first = create_model("pfenet", encoder="pfenet_vgg16_bn", size=65)
    with_statistics(first.encoder)
    first.save(tmp_path / "own.safetensors")
    keys = first.published_keys.to_published
    published = {f"module.{keys(key)}": tensor for key, tensor in first.state_dict().items()}
    assert "module.layer2.6.weight" in published
    torch.save({"epoch": 1, "state_dict": published}, tmp_path / "published.pth")
    images, masks, query = episode()
    wanted = first.segment(query, first.encode_support(images, masks)).logits
    for name in ("own.safetensors", "published.pth"):
        path = tmp_path / name
        again = create_model("pfenet", encoder="pfenet_vgg16_bn", size=65, weights=path)
        assert torch.equal(again.segment(query, again.encode_support(images, masks)).logits, wanted)
        assert again.head_origin == again.weights_origin == str(path)
    del published["module.cls.3.bias"]
    save_checkpoint(tmp_path / "broken.safetensors", published)
    with pytest.raises(CheckpointError, match=r"1 missing: cls\.3\.bias"):
        create_model("pfenet", encoder="pfenet_vgg16_bn", weights=tmp_path / "broken.safetensors")


# ---- Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 472}, ValueError, "size: expected 8 n + 1 pixels, such as 473 or 641, got 472"),
        ({"layers": ("layer4",)}, ValueError, "layers: expected two or more maps, shallow to deep"),
        (
            {"layers": ("layer3", "layer2", "layer4")},
            ValueError,
            "layers: expected two or more maps, shallow to deep, got layer3, layer2, layer4",
        ),
        ({"layers": ("layer2", "layer5")}, ValueError, "no feature map 'layer5'"),
        ({"pyramid": ()}, ValueError, "pyramid: expected whole numbers of positions"),
        ({"pyramid": (60, 7.5)}, ValueError, "pyramid: expected whole numbers of positions"),
    ],
    ids=["size", "one layer", "order", "unknown layer", "no branch", "fraction above one"],
)
def test_wrong_options_are_named(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        model(**options)


def test_an_encoder_that_cannot_run_its_last_stage_alone_is_refused() -> None:
    pytest.importorskip("timm")
    encoder = create_encoder("timm:resnet10t")
    wanted = "encoder: expected one that runs stage by stage.*, got timm:resnet10t"
    with pytest.raises(TypeError, match=wanted):
        PFENet(encoder, layers=tuple(feature.name for feature in encoder.features[-3:]))


def test_wrong_images_and_tasks_are_named() -> None:
    segmenter = model()
    images, masks, query = episode()
    with torch.no_grad():
        task = segmenter.encode_support(images, masks)
        with pytest.raises(ValueError, match=r"query: expected 8 n \+ 1 pixels a side.*64 x 65"):
            segmenter.segment(query[..., 1:, :], task)
        with pytest.raises(ValueError, match=r"images: expected 8 n \+ 1 pixels a side.*65 x 64"):
            segmenter.encode_support(images[..., 1:], masks)
        with pytest.raises(ValueError, match="images: expected the same size in all shots"):
            others = episode(size=(73, 73))
            segmenter.encode_support(
                [images[:, 0], others[0][:, 0]], [masks[:, 0], others[1][:, 0]]
            )
        with pytest.raises(ValueError, match="task: expected a task of method 'pfenet'"):
            segmenter.segment(query, Task("ssp", task.tensors))
        with pytest.raises(ValueError, match="one of batch 3"):
            segmenter.segment(query, segmenter.encode_support(*episode(batch=3)[:2]))
        narrow = {**task.tensors, "high": task.tensors["high"][:, :, :7]}
        wanted = r"task: expected high-level features \(B, K, 512, h, w\), got \(1, 1, 7, 3, 3\)"
        with pytest.raises(ValueError, match=wanted):
            segmenter.segment(query, Task("pfenet", narrow))
        with pytest.raises(TypeError, match="options: expected those of method 'pfenet'"):
            fastfss.create_model("pfenet", encoder="resnet18", refine=True)


@torch.no_grad()
def test_the_deepest_map_at_the_middle_maps_grid_is_not_resized() -> None:
    """The published ResNets: one grid throughout, where the reduced mask is binary."""
    segmenter = model("pfenet_resnet50", pyramid=(9, 4))
    images, masks, query = episode()
    task = segmenter.encode_support(images, masks)
    assert task.tensors["high"].shape == (1, 1, 2048, 9, 9)
    objects = task.tensors["object"]
    assert torch.equal(objects, (objects > 0).float())
    assert_close(objects, resize((masks == 1).float(), (9, 9)))
    wanted, _ = published_forward(segmenter, [images[:, 0]], [masks[:, 0]], query)
    assert_close(segmenter.segment(query, task).logits, wanted)
