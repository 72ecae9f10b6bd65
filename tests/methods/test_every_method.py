"""What holds for every method of `list_models`, those to come included, as a user calls it."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastfss
from fastfss import Task, create_model, list_models
from fastfss.cli import main
from fastfss.methods import Features, FewShotSegmenter
from tests.methods.options import OPTIONS

# Small, to be quick; PFENet wants 8 n + 1 pixels, DCAMA a multiple of 32.
SIZES = {"dcama": 96}
every_method = pytest.mark.parametrize("method", list_models())

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")


@cache
def model(method: str) -> FewShotSegmenter:
    torch.manual_seed(0)
    return create_model(method, size=SIZES.get(method, 97), **OPTIONS.get(method, {}))


def picture(seed: int, height: int = 60, width: int = 90) -> tuple[Image.Image, np.ndarray]:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 80, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    top, left = generator.integers(5, 20, 2)
    mask[top : top + 25, left : left + 40] = 255
    pixels[mask > 0] += 150
    return Image.fromarray(pixels), mask


@every_method
def test_shots_of_any_shape_give_a_result_of_the_querys_own_size(method: str) -> None:
    task = model(method).fit([picture(1), picture(2, 80, 70)], name="box")
    assert task.shots == 2
    result = model(method).predict(picture(3, 71, 53)[0], task)
    assert result.labels.shape == (71, 53)
    assert result.scores.shape == (1, 71, 53)
    assert np.isfinite(result.scores).all()
    assert set(np.unique(result.labels)) <= {0, 1}
    again = model(method).predict(picture(3, 71, 53)[0], task)
    assert np.array_equal(again.scores, result.scores), "a query must not change the next one"


@every_method
def test_shots_come_and_go(method: str) -> None:
    together = model(method).fit([picture(1), picture(2), picture(3)])
    apart = [model(method).fit([picture(seed)]) for seed in (1, 2, 3)]
    query = picture(4, 50, 66)[0]
    wanted = model(method).predict(query, together).scores
    found = model(method).predict(query, apart[0].merge(*apart[1:])).scores
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    fewer = model(method).predict(query, together.remove(2)).scores
    pair = model(method).predict(query, apart[0].merge(apart[1])).scores
    np.testing.assert_allclose(fewer, pair, atol=2e-4)


def batch(method: str, seed: int) -> torch.Tensor:
    side = SIZES.get(method, 97)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


@every_method
def test_encoded_images_give_what_images_give(method: str) -> None:
    # A copy, since AMP moves its background with every support that it sees, as published.
    network, other = (copy.deepcopy(model(method)).eval() for _ in range(2))
    images, query = [batch(method, 1), batch(method, 2)], batch(method, 3)
    masks = torch.zeros(2, 2, 80, 70, dtype=torch.uint8)
    masks[:, :, 20:60, 10:50] = 1
    masks[:, :, :5] = 255
    with torch.no_grad():
        wanted = other.encode_support(torch.stack(images, dim=1), masks)
        features = [network.encode(one) for one in images]
        found = network.support_from(features, masks)
        assert found.tensors.keys() == wanted.tensors.keys()
        for name, tensor in wanted.tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-5, atol=1e-5)
        encoded = network.encode(query)
        assert encoded.batch == 2
        assert encoded.size == tuple(query.shape[2:])
        direct = network.segment(query, wanted, output_size=(50, 60)).logits
        again = network.segment_from(encoded, wanted, output_size=(50, 60)).logits
        assert torch.equal(again, direct)
        first = network.support_from([one.select([0]) for one in features], masks[:1])
        alone = network.segment_from(encoded.select([0]), first).logits
        assert alone.shape == (1, 2, *query.shape[2:])


@every_method
def test_features_of_others_are_refused(method: str) -> None:
    task = model(method).fit([picture(1)])
    foreign = Features({"nothing": torch.zeros(1, 4, 3, 3)}, (97, 97))
    with pytest.raises(ValueError, match="features: expected"):
        model(method).segment_from(foreign, task)
    with pytest.raises(ValueError, match="features: expected"):
        model(method).support_from([foreign], torch.ones(1, 1, 9, 9))
    with pytest.raises(ValueError, match="masks: expected one mask for each"):
        encoded = model(method).encode(batch(method, 1))
        model(method).support_from([encoded], torch.ones(2, 2, 9, 9))


@every_method
def test_ways_may_differ_in_their_shots(method: str) -> None:
    cow = model(method).fit([picture(1)], name="cow")
    sheep = model(method).fit([picture(2), picture(3)], name="sheep")
    result = model(method).predict(picture(4, 40, 64)[0], [cow, sheep])
    assert result.names == ("cow", "sheep")
    assert result.scores.shape == (2, 40, 64)
    assert set(np.unique(result.labels)) <= {0, 1, 2}


@every_method
def test_a_saved_task_gives_the_same_masks(method: str, tmp_path: Path) -> None:
    task = model(method).fit([picture(1)])
    task.save(tmp_path / "task.safetensors")
    query = picture(2, 48, 60)[0]
    found = model(method).predict(query, Task.load(tmp_path / "task.safetensors"))
    assert np.array_equal(found.scores, model(method).predict(query, task).scores)


@every_method
def test_the_copy_for_inference_takes_the_models_tasks(method: str) -> None:
    task = model(method).fit([picture(1)])
    query = picture(2)[0]
    fast = model(method).for_inference()
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    wanted = model(method).predict(query, task).scores
    np.testing.assert_allclose(fast.predict(query, task).scores, wanted, atol=1e-3)
    low = model(method).for_inference(dtype=torch.bfloat16)
    assert np.isfinite(low.predict(query, low.fit([picture(1)])).scores).all()


@every_method
def test_a_saved_model_comes_back(method: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    model(method).save(file)
    torch.manual_seed(1)
    again = create_model(
        method, size=SIZES.get(method, 97), weights=file, **OPTIONS.get(method, {})
    )
    assert again.fingerprint() == model(method).fingerprint()


@every_method
def test_a_saved_copy_for_inference_comes_back_folded(method: str, tmp_path: Path) -> None:
    file = tmp_path / "fast.safetensors"
    fast = model(method).for_inference()
    fast.save(file)
    again = create_model(
        method, size=SIZES.get(method, 97), weights=file, **OPTIONS.get(method, {})
    )
    task = fast.fit([picture(1)])
    query = picture(2)[0]
    wanted = fast.predict(query, task).scores
    found = again.predict(query, again.fit([picture(1)])).scores
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@every_method
def test_a_file_that_does_not_fit_changes_nothing(method: str, tmp_path: Path) -> None:
    state = {k: t.clone() for k, t in model(method).state_dict().items()}
    broken = dict(state)
    name = next(key for key in reversed(broken) if broken[key].ndim > 1)
    broken[name] = torch.zeros(3)
    with pytest.raises(ValueError, match="of the wrong shape"):
        model(method).load_checkpoint(broken, "broken.pth")
    after = model(method).state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in state.items())


@pytest.mark.filterwarnings("default")
def test_a_head_that_was_trained_is_not_warned_about(recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(0)
    trained = create_model("canet", size=33)
    with pytest.warns(UserWarning, match="the head of CANet has random weights"):
        trained.fit([picture(1)])
    recwarn.clear()
    trained.train()
    trained.eval().fit([picture(1)])
    assert not recwarn.list


@every_method
def test_tasks_of_other_methods_are_refused(method: str) -> None:
    other = Task("nobody", {"x": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match=rf"task: expected a task of method '{method}'"):
        model(method).segment(torch.zeros(1, 3, 97, 97), other)
    with pytest.raises(ValueError, match=r"query: expected \(B, 3, H, W\)"):
        model(method).segment(torch.zeros(3, 97, 97), other)
    with pytest.raises(ValueError, match="layer9"):
        create_model(method, layers=("layer9",))
    with pytest.raises(ValueError, match="no encoder 'resnet51'"):
        create_model(method, encoder="resnet51")
    with pytest.raises(TypeError, match=f"options: expected those of method '{method}'"):
        create_model(method, colour="red")


@every_method
def test_the_program_takes_it(method: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("pycocotools")
    for seed in (1, 2):
        image, mask = picture(seed)
        image.save(tmp_path / f"{seed}.png")
        Image.fromarray(mask).save(tmp_path / f"{seed}_mask.png")
    files = [str(tmp_path / name) for name in ("1.png", "1_mask.png", "2.png")]
    size = str(SIZES.get(method, 97))
    code = main(
        [
            *("predict", "--method", method, "--size", size, "--support", *files[:2]),
            *("--query", files[2], "--out", str(tmp_path / "out")),
            *(f"--option={name}={value}" for name, value in OPTIONS.get(method, {}).items()),
        ]
    )
    assert code == 0, capsys.readouterr().err
    with Image.open(tmp_path / "out" / "2_mask.png") as mask:
        assert mask.size == (90, 60)


def test_the_classes_of_the_list_are_at_the_top() -> None:
    for method in list_models():
        kind = type(model(method))
        assert getattr(fastfss, kind.__name__) is kind
