"""The recipe of the default weights: its splits, its episodes, and the whole of it on tiny data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastfss
from fastfss.training.default_weights import __main__ as program
from fastfss.training.default_weights import calibration, loop
from fastfss.training.default_weights.calibration import area_under_curve, logistic
from fastfss.training.default_weights.episodes import SHARES, Episodes
from fastfss.training.default_weights.photos import TESTED_ELSEWHERE, make_split, read_photos
from fastfss.training.default_weights.pseudo_masks import object_mask
from fastfss.training.default_weights.views import (
    LABEL_SIDE,
    Counts,
    View,
    Views,
    allowed_views,
    held_out_views,
    make_views,
)
from fastfss.weights import read_checkpoint
from fastfss.weights.check import SHAPES, scene

pytest.importorskip("cv2")
pytest.importorskip("skimage")

FEW = Counts(clothing=1, coco=2, davis=1, caltech=1, pasted=6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four sets in their layouts, drawn."""
    root = tmp_path_factory.mktemp("data")
    for name, classes in (("clothing", 6), ("coco_mini", 6)):
        (root / name / "images").mkdir(parents=True)
        (root / name / "masks").mkdir()
        names = [f"thing {label}" for label in range(1, classes + 1)]
        index = {}
        for label, thing in enumerate(names, start=1):
            index[thing] = [f"{label}_{number}" for number in range(3)]
            for number, stem in enumerate(index[thing]):
                image, mask = scene(SHAPES[label % 4], number)
                Image.fromarray(image).save(root / name / "images" / f"{stem}.jpg")
                Image.fromarray(mask * np.uint8(label)).save(root / name / "masks" / f"{stem}.png")
        (root / name / "classes.txt").write_text("\n".join(names) + "\n")
        (root / name / "index.json").write_text(json.dumps(index))
    for video in ("a", "b", "c", "d", "e"):
        for part in ("JPEGImages", "Annotations"):
            (root / "davis_mini" / part / video).mkdir(parents=True)
        for frame in range(0, 13, 6):
            image, mask = scene("star", frame)
            place = root / "davis_mini"
            for number in range(frame, frame + 6):
                Image.fromarray(image).save(place / "JPEGImages" / video / f"{number:05}.jpg")
                Image.fromarray(mask).save(place / "Annotations" / video / f"{number:05}.png")
    for name in ("ketch", "nautilus"):
        (root / "caltech101_images" / name).mkdir(parents=True)
        for number in range(3):
            image, _ = scene("disc", number)
            Image.fromarray(image).save(root / "caltech101_images" / name / f"{number}.jpg")
    return root


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "random.pth"
    torch.save(fastfss.create_encoder("mobilenet_v2_tf").state_dict(), path)
    return path


def test_every_class_is_left_out_by_one_split(data: Path) -> None:
    photos = read_photos(data)
    times = Counter(name for n in range(5) for name in make_split(photos, n).held_out)
    for kind in ("clothing", "coco", "davis"):
        names = {name for photo in photos[kind] for name in photo.things.values()}
        assert {times[name] for name in names - TESTED_ELSEWHERE} == {1}


def test_no_split_trains_with_a_photograph_that_it_tests_or_of_a_class_that_it_leaves_out(
    data: Path,
) -> None:
    photos = read_photos(data)
    for number in range(5):
        split = make_split(photos, number)
        kept = {photo.image for photo in split.photos}
        for kind in ("coco", "davis", "caltech"):
            for photo in photos[kind]:
                if split.held_out.intersection(photo.things.values()):
                    assert photo.image not in kept
        tested = [p for p in photos["clothing"] if p.image in split.tested]
        assert len(tested) == len(photos["clothing"]) // 3
        assert not kept.intersection(photo.image for photo in tested)


def test_a_class_under_another_name_is_left_out_with_it(tmp_path: Path, data: Path) -> None:
    photos = read_photos(data)
    ships = [p for p in photos["caltech"] if p.things == {1: "caltech/ketch"}]
    boats = [type(ships[0])(p.image, p.mask, {1: "coco/boat"}) for p in photos["coco"][:3]]
    renamed = {**photos, "coco": boats}
    out = [n for n in range(5) if "coco/boat" in make_split(renamed, n).held_out]
    assert len(out) == 1
    assert "caltech/ketch" in make_split(renamed, out[0]).held_out
    assert "caltech/nautilus" not in make_split(renamed, out[0]).held_out


def test_views_repeat_and_show_what_they_say(data: Path) -> None:
    photos = read_photos(data)
    first, again = (list(make_views(photos, FEW, 3)) for _ in range(2))
    assert len(first) == sum(len(p) * getattr(FEW, name) for name, p in photos.items()) + FEW.pasted
    for (image, labels, view), (image2, labels2, view2) in zip(first, again, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(image2))
        assert np.array_equal(labels, labels2)
        assert view == view2
        assert labels.shape == (LABEL_SIDE, LABEL_SIDE)
        for label in view.things:
            shown = (labels > 0) & (labels != 255) if label == 250 else labels == label
            assert shown.any()


def test_the_thing_in_the_middle_is_found_and_an_empty_photograph_has_none() -> None:
    y, x = np.mgrid[:120, :150]
    disc = (x - 75) ** 2 + (y - 60) ** 2 < 35**2
    rng = np.random.default_rng(0)
    pixels = np.where(disc[:, :, None], (200, 60, 40), (40, 90, 160))
    pixels = pixels + rng.normal(0, 6, (120, 150, 1))
    found = object_mask(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    assert found is not None
    assert ((found == 1) & disc).sum() / ((found == 1) | disc).sum() > 0.9
    assert object_mask(Image.new("RGB", (150, 120), (90, 90, 90))) is None


class FakeViews:
    """Views of squares, without maps."""

    def __init__(self, names: list[str]) -> None:
        self.views = [View(number, {1: name}) for number, name in enumerate(names)]
        self.maps = {"layer1": np.zeros((len(names), 2, 4, 4), np.float16)}
        self.labels = np.zeros((len(names), LABEL_SIDE, LABEL_SIDE), np.uint8)
        self.labels[:, 40:120, 40:120] = 1


def test_clicks_go_where_the_prediction_is_wrong() -> None:
    views = FakeViews(["coco/a"] * 3)
    episodes = Episodes(views, range(3), frozenset(), 0)  # type: ignore[arg-type]
    batch = episodes.clicked(2)
    assert bool((batch.shot_masks[0] == 1).any(dim=(1, 2)).all())
    assert not (batch.shot_masks[0] == 0).any()
    found = torch.full((2, LABEL_SIDE, LABEL_SIDE), -9.0)
    found[:, 40:120, 40:160] = 9.0  # the right half of it is wrong
    after = episodes.corrected(batch, found)
    assert bool((after.shot_masks[0][:, 40:120, 120:] == 0).any())
    assert after.hints[:, 2].amax() == 1
    assert float(after.hints[0, 0, 60, 60]) > 0.99
    assert float(after.hints[0, 0, 5, 5]) < -0.99


def test_absent_queries_do_not_show_the_class() -> None:
    views = FakeViews(["coco/a", "coco/b"] * 4)
    episodes = Episodes(views, range(8), frozenset(), 0)  # type: ignore[arg-type]
    batch = episodes.few_shot(16, absent=1.0)
    assert not batch.present.any()
    assert not (batch.query_mask == 1).any()


def test_held_out_classes_are_not_asked_for() -> None:
    views = FakeViews(["coco/a", "coco/b"] * 4)
    episodes = Episodes(views, range(8), frozenset({"coco/b"}), 0)  # type: ignore[arg-type]
    assert set(episodes.members) == {"coco/a"}
    assert set(episodes.by_set) == set(SHARES)


def test_the_logistic_line_gives_back_the_one_that_drew() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20000, generator=generator)
    truth = torch.rand(20000, generator=generator) < (2 * scores - 0.5).sigmoid()
    slope, offset = logistic(scores, truth)
    assert slope == pytest.approx(2, abs=0.1)
    assert offset == pytest.approx(-0.5, abs=0.1)


def test_the_area_under_the_curve_counts_ordered_pairs() -> None:
    assert area_under_curve([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == 0.875


@pytest.mark.slow
def test_the_whole_recipe_runs_and_goes_on_where_it_stopped(
    data: Path, encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "Counts", lambda: FEW)
    monkeypatch.setattr(calibration, "EPISODES", 8)
    monkeypatch.setattr(loop, "CALIBRATION", 1)
    work, out = tmp_path / "work", tmp_path / "made.safetensors"
    arguments = ["--data", str(data), "--encoder", str(encoder_file), "--work", str(work)]
    arguments += ["--out", str(out), "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["default_weights", *arguments])
    program.main()
    split, views = make_split(read_photos(data), 0), Views(work / "views")
    allowed = allowed_views(views, read_photos(data), split)
    assert not set(allowed) & set(held_out_views(views, read_photos(data), split))

    made = read_checkpoint(out)
    stamps = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    assert len([path for path in stamps if path.parent == work]) == 6
    out.unlink()
    program.main()
    again = read_checkpoint(out)
    assert again.keys() == made.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in made.items())
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps

    model = fastfss.create_model("default", weights=out)
    files = [work / f"split{n}.safetensors" for n in range(5)]
    splits = [fastfss.create_model("cue-fusion", weights=file) for file in files]
    mean = torch.stack([one.calibration for one in splits]).mean(dim=0)
    torch.testing.assert_close(model.calibration, mean, atol=1e-3, rtol=1e-3)
    image, mask = scene("bar", 0)
    assert model.predict(image, model.fit([(image, mask)])).labels.shape == mask.shape
