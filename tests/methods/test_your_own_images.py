"""fit and predict, as a user with photographs calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastfss
from fastfss import SSP, Task
from tests.methods.episodes import picture


def make(**options: object) -> fastfss.methods.FewShotSegmenter:
    torch.manual_seed(0)
    encoder = fastfss.create_encoder("resnet18")
    return fastfss.create_model("ssp", encoder=encoder, layers=("layer2",), **options)  # type: ignore[arg-type]


def test_create_model_gives_the_class_that_is_imported() -> None:
    assert isinstance(make(), SSP)
    assert {"mlc", "ssp"} <= set(fastfss.list_models())


def test_paths_images_arrays_and_tensors_give_the_same_task(tmp_path: Path) -> None:
    model = make()
    image, mask = picture()
    image.save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    forms = [
        (tmp_path / "photo.png", tmp_path / "mask.png"),
        (str(tmp_path / "photo.png"), Image.fromarray(mask)),
        (np.asarray(image), mask > 0),
        (torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(mask)),
    ]
    tasks = [model.fit([form], name="box") for form in forms]
    for task in tasks[1:]:
        assert torch.equal(task.tensors["foreground"], tasks[0].tensors["foreground"])


@pytest.mark.parametrize("size", [None, 48, 200])
def test_the_result_has_the_querys_own_size(size: int | None) -> None:
    model = make(size=size)
    task = model.fit([picture()], name="box")
    query, _ = picture(71, 53)
    result = model.predict(query, task)
    assert result.labels.shape == (71, 53)
    assert result.scores.shape == (1, 71, 53)
    assert result.names == ("box",)
    assert np.array_equal(result.mask(), result.scores[0] > 0.5)


def test_two_ways_are_labelled_in_the_tasks_order() -> None:
    model = make()
    image, mask = picture()
    box, rest = model.fit([(image, mask)], name="box"), model.fit([(image, mask == 0)], name="rest")
    result = model.predict(image, [box, rest])
    assert result.names == ("box", "rest")
    assert result.scores.shape[0] == 2
    assert set(np.unique(result.labels)) <= {0, 1, 2}
    # The object's own pixels must be given to it far more often than to the other way.
    assert (result.labels[mask > 0] == 1).mean() > (result.labels[mask == 0] == 1).mean()


def test_a_saved_task_predicts_the_same(tmp_path: Path) -> None:
    model = make()
    image, mask = picture()
    task = model.fit([(image, mask)] * 2)
    task.save(tmp_path / "task.safetensors")
    again = model.predict(image, Task.load(tmp_path / "task.safetensors"))
    assert np.array_equal(again.scores, model.predict(image, task).scores)


def test_a_task_of_other_weights_is_refused() -> None:
    task = make().fit([picture()])
    torch.manual_seed(1)
    other = fastfss.create_model(
        "ssp", encoder=fastfss.create_encoder("resnet18"), layers=("layer2",)
    )
    with pytest.raises(ValueError, match="task: expected a task with weights"):
        other.predict(picture()[0], task)


def test_changing_a_weight_changes_the_fingerprint() -> None:
    model = make()
    before = model.fingerprint()
    assert model.fingerprint() == before
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)
    assert model.fingerprint() != before


def test_a_model_made_in_inference_mode_has_a_fingerprint() -> None:
    with torch.inference_mode():
        model = make()
        before = model.fingerprint()
        assert before == make().fingerprint()
        next(model.encoder.parameters()).add_(1)
        assert model.fingerprint() != before


def test_one_label_of_a_label_map_can_be_taken() -> None:
    model = make()
    image, mask = picture()
    labels = np.where(mask > 0, 7, 3).astype(np.uint8)
    labels[:5] = 0
    task = model.fit([(image, labels)], mask_value=7)
    assert torch.equal(task.tensors["foreground"], model.fit([(image, mask)]).tensors["foreground"])


@pytest.mark.filterwarnings("default")
def test_random_weights_are_warned_about() -> None:
    model = fastfss.create_model("ssp", encoder="resnet18", layers=("layer2",), size=32)
    with pytest.warns(UserWarning, match="random weights"):
        model.fit([picture()])


@pytest.mark.parametrize(
    ("shots", "error", "message"),
    [
        ([], ValueError, r"shots: expected at least one pair"),
        ([picture()[0]], ValueError, r"shots\[0\]: expected a pair"),
        ([(picture()[0], np.zeros((60, 90)))], ValueError, r"shots\[0\] mask"),
        ([picture(), (picture()[0], np.ones((9, 9)))], ValueError, r"shots\[1\] mask"),
        ([("no such file.jpg", picture()[1])], FileNotFoundError, r"shots\[0\] image"),
    ],
    ids=["none", "no pair", "empty mask", "mask of another size", "missing file"],
)
def test_wrong_shots_are_named(shots: list[object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make().fit(shots)  # type: ignore[arg-type]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"method: expected one of .*mlc, .*ssp.*, got 'sps'"):
        fastfss.create_model("sps")
    with pytest.raises(ValueError, match="layer9"):
        make().encoder.info("layer9")
    with pytest.raises(TypeError, match="options: expected those of method 'mlc'"):
        fastfss.create_model("mlc", encoder="resnet18", refine=True)


def test_a_saved_model_comes_back_with_the_same_weights(tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model.safetensors")
    again = fastfss.create_model(
        "ssp", encoder="resnet18", layers=("layer2",), weights=tmp_path / "model.safetensors"
    )
    assert again.fingerprint() == model.fingerprint()


def test_published_names_of_one_method_load_into_the_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ssp = SSP(fastfss.create_encoder("deep_resnet50"))
    published = {SSP.published_keys.to_published(k): v for k, v in ssp.state_dict().items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in published.items()}}, tmp_path / "s.pth")
    mlc = fastfss.create_model("mlc", weights=tmp_path / "s.pth")
    for name, tensor in ssp.state_dict().items():
        assert torch.equal(mlc.state_dict()[name], tensor), name


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = fastfss.create_encoder("resnet18").state_dict()
    state["layer2.0.conv1.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"layer2\.0\.conv1\.weight"):
        fastfss.create_model("ssp", encoder="resnet18", weights=tmp_path / "wrong.pth")
