from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastfss import create_model
from fastfss.data.sets import MaskSet, open_set
from fastfss.methods import FewShotSegmenter
from fastfss.training import FeatureCache, build_cache, feature_cache, load_recipe
from tests.training.shapes import tiny_recipe
from tests.training.test_loop import equal, rows, run

METHODS: dict[str, dict[str, Any]] = {
    "hsnet": {"encoder": "mobilenet_v2", "layers": []},
    "dcama": {"layers": [], "options": {"dropout": 0.0}},
    "canet": {"layers": ["layer2", "layer3"], "options": {"dropout": 0.0}},
    "denet": {"layers": ["layer3"], "options": {"dropout": 0.0}},
    "pfenet": {"layers": ["layer2", "layer3", "layer4"], "options": {"pyramid": [1.0]}},
    "amp": {"layers": ["layer1", "layer2", "layer3"]},
}


@pytest.fixture(scope="module")
def images(shapes: Path) -> MaskSet:
    return open_set("folder", shapes)


def hsnet(seed: int = 0) -> FewShotSegmenter:
    torch.manual_seed(seed)
    return create_model("hsnet", encoder="mobilenet_v2")


def build(images: MaskSet, folder: Path, **options: Any) -> FeatureCache:
    settings = {"size": 64, "numbers": range(5), "mirrored": True, **options}
    numbers = list(settings.pop("numbers"))
    return build_cache(settings.pop("model", hsnet()), images, numbers, folder=folder, **settings)


@pytest.mark.parametrize("dtype, bound", [("fp32", 0), ("fp16", 1e-3), ("bf16", 8e-3)])
def test_the_maps_are_the_encoders(
    dtype: str, bound: float, images: MaskSet, tmp_path: Path
) -> None:
    model = hsnet()
    cache = build(images, tmp_path, model=model, dtype=dtype)
    for mirrored in (False, True):
        small = feature_cache._framed(images, [3], 64)
        wanted = feature_cache._encode(model, small.flip(-1) if mirrored else small)
        for name, maps in cache.maps(3, mirrored=mirrored).items():
            error = (maps.float() - wanted[name][0]).abs().max()
            assert error <= bound * wanted[name].abs().max() + 1e-6


def test_it_takes_what_it_says(images: MaskSet, tmp_path: Path) -> None:
    cache = build(images, tmp_path)
    files = [file for file in cache.folder.glob("*.bin") if file.stem != "done"]
    assert sum(file.stat().st_size for file in files) == cache.nbytes


def test_what_is_there_is_not_computed_again(
    images: MaskSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = count_encodings(monkeypatch)
    build(images, tmp_path)
    first = counted[0]
    build(images, tmp_path)
    assert counted[0] - first == 1, "the probe alone"


def count_encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[images encoded so far], counting from here."""
    counted, inner = [0], feature_cache._encode

    def counting(model: FewShotSegmenter, batch: Tensor) -> dict[str, Tensor]:
        counted[0] += len(batch)
        return inner(model, batch)

    monkeypatch.setattr(feature_cache, "_encode", counting)
    return counted


def test_a_killed_build_goes_on_with_what_is_missing(
    images: MaskSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(images, tmp_path / "whole", numbers=range(20))
    seen = []

    def killed(done: int, _: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "killed", numbers=range(20), progress=killed)
    counted = count_encodings(monkeypatch)
    cache = build(images, tmp_path / "killed", numbers=range(20))
    assert counted[0] == 1 + 2 * (20 - seen[-1])
    for name in cache.shapes:
        assert torch.equal(cache.file(name), whole.file(name))


@pytest.mark.parametrize(
    "change",
    [{"size": 96}, {"numbers": range(4)}, {"mirrored": False}, {"dtype": "bf16"}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_have_a_folder_of_their_own(
    change: dict[str, Any], images: MaskSet, tmp_path: Path
) -> None:
    assert build(images, tmp_path, **change).folder != build(images, tmp_path).folder


def test_other_weights_or_images_have_a_folder_of_their_own(
    images: MaskSet, tmp_path: Path, shapes: Path
) -> None:
    first = build(images, tmp_path)
    assert build(images, tmp_path, model=hsnet(seed=1)).folder != first.folder
    head = hsnet()
    head.hpn_learner.decoder2[0].weight.data.zero_()  # type: ignore[union-attr,index,operator]
    assert build(images, tmp_path, model=head).folder == first.folder, "the head plays no part"


def test_processes_share_the_work(images: MaskSet, tmp_path: Path) -> None:
    whole = build(images, tmp_path / "whole", numbers=range(11))
    for rank in range(3):
        parts = build(images, tmp_path / "parts", numbers=range(11), share=(rank, 3))
    assert bool(parts.done.all())
    for name in whole.shapes:
        assert torch.equal(parts.file(name), whole.file(name))


@pytest.mark.parametrize("method", METHODS)
def test_a_head_trains_as_with_its_encoder(method: str, shapes: Path, tmp_path: Path) -> None:
    model = METHODS[method]
    if method in ("canet", "denet", "pfenet", "amp"):
        model = {**model, "options": {**model.get("options", {}), "batch_statistics": False}}
    labelled = {"labels": "ids", "held_out": "ignored"} if method in ("denet", "amp") else {}
    sampler = {"sampler": "single"} if method == "amp" else {}
    common = {
        "model": model,
        "data": {**labelled, **sampler, "episodes": 60},
        "transform": {"size": 65 if method == "pfenet" else 64},
        "run": {"steps": 3, "batch": 2},
        "optimiser": {"lr": 1e-3},
        "log": {"every": 1},
    }
    plain = run(tiny_recipe(shapes, method, **common), tmp_path / "plain")
    recipe = tiny_recipe(shapes, method, **common, cache={"maps": "fp32"})
    cached = run(recipe, tmp_path / "cached")
    assert plain.keys() == cached.keys(), "the encoder is saved too"
    losses = [[row["total"] for row in rows(tmp_path / n, "train")] for n in ("plain", "cached")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for key, value in plain.items():
        torch.testing.assert_close(cached[key], value, rtol=1e-3, atol=1e-4)


def test_a_cached_run_goes_on_bit_for_bit(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(
        shapes, "hsnet", model=METHODS["hsnet"], transform={"size": 64}, cache={"maps": "fp16"},
        validation={"every": 2, "episodes": 2, "minimum": 20},
    )  # fmt: skip
    whole = run(recipe, tmp_path / "whole")
    run(tiny_recipe(shapes, "hsnet", model=METHODS["hsnet"], transform={"size": 64},
        cache={"maps": "fp16"}, run={"steps": 4},
        validation={"every": 2, "episodes": 2, "minimum": 20}), tmp_path / "part")  # fmt: skip
    counted = count_encodings(monkeypatch)
    assert equal(whole, run(recipe, tmp_path / "part", resume=True))
    assert counted[0] == 1


@pytest.mark.parametrize(
    "method, model, message",
    [
        ("mlc", {}, "a method whose encoder is frozen, got mlc, which trains"),
        ("canet", METHODS["canet"], r"model\.options\.batch_statistics = false"),
    ],
)
def test_an_encoder_that_changes_cannot_be_cached(
    method: str, model: dict[str, Any], message: str, shapes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tiny_recipe(shapes, method, model=model, cache={"maps": "fp16"}), tmp_path)


def test_the_disk_is_bounded(images: MaskSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cache\.limit_gib: expected at least 0\.00 GiB"):
        build(images, tmp_path, limit_gib=1e-6)
    assert not list(tmp_path.iterdir())


def test_an_image_or_view_that_is_not_kept_is_named(images: MaskSet, tmp_path: Path) -> None:
    cache = build(images, tmp_path, mirrored=False)
    with pytest.raises(ValueError, match="got image 7, as it is"):
        cache.maps(7)
    with pytest.raises(ValueError, match="got image 3, mirrored"):
        cache.maps(3, mirrored=True)


def test_the_cpu_recipe_uses_the_cache() -> None:
    assert load_recipe("hsnet-cpu").cache.maps == "fp16"
