from __future__ import annotations

import json
import random

import numpy as np
import pytest

from fastfss.protocols import (
    PROTOCOLS,
    EpisodeList,
    draw_episodes,
    get_protocol,
    hsnet_listed_episodes,
    panet_episodes,
)
from fastfss.protocols.episode_lists import fold_of
from tests.protocols.blocks import Blocks

KINDS = {"hsnet": "pascal", "pfenet": "pascal", "panet": "pascal", "ssp": "pascal"}
KINDS |= {"denet": "pascal", "fss1000": "folder", "classes": "folder"}


def images_of(name: str) -> Blocks:
    kind = KINDS[name]
    # 2048 pixels of a class are large: half of the picture's height and width.
    return Blocks(kind, 20 if kind == "pascal" else 6, 160, size=(96, 128))


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("shots", [1, 3])
def test_every_protocol_draws_episodes_of_its_novel_classes(name: str, shots: int) -> None:
    images, protocol = images_of(name), get_protocol(name)
    episodes = None if name == "fss1000" else 8
    found = draw_episodes(protocol, images, 0, shots=shots, episodes=episodes)
    assert found.set_digest == images.digest
    assert {one.run for one in found.episodes} == set(range(protocol.runs))
    for one in found.episodes:
        (number,), (supports,) = one.classes, one.supports
        assert number in found.classes
        assert len(supports) == shots
        assert one.query not in supports
        for member in (*supports, one.query):
            assert number in images.items[member].pixels
    again = draw_episodes(protocol, images, 0, shots=shots, episodes=episodes)
    assert again.digest == found.digest


def test_hsnets_are_those_of_its_sampler() -> None:
    images = images_of("hsnet")
    found = draw_episodes(get_protocol("hsnet"), images, 1, episodes=30)
    large = images.index(2048)
    pairs = sorted((images.items[n].name, c, n) for c in range(6, 11) for n in large[c])
    index: dict[int, list[int]] = {c: [] for c in range(6, 11)}
    listed = []
    for _, cls, number in pairs:
        listed.append((cls, len(index[cls])))
        index[cls].append(number)
    wanted = hsnet_listed_episodes(index, listed, episodes=30, generator=np.random.RandomState(0))
    assert [(e.classes[0], e.query, e.supports[0]) for e in found.episodes] == [
        (
            e.classes[0],
            index[e.classes[0]][e.queries[0][0]],
            tuple(index[e.classes[0]][p] for p in e.supports[0]),
        )
        for e in wanted
    ]


def test_panets_runs_have_seeds_of_their_own_and_may_have_several_ways() -> None:
    images = images_of("panet")
    found = draw_episodes(get_protocol("panet"), images, 2, ways=2, shots=2, episodes=5)
    index = {c: images.index()[c] for c in range(11, 16)}
    for run in range(5):
        wanted = panet_episodes(
            index, ways=2, shots=2, episodes=5, generator=random.Random(1234 + run)
        )
        mine = [one for one in found.episodes if one.run == run]
        assert [one.classes for one in mine] == [one.classes for one in wanted]
        first, theirs = mine[0], wanted[0]
        assert first.supports == tuple(
            tuple(index[c][p] for p in places)
            for c, places in zip(theirs.classes, theirs.supports, strict=True)
        )


def test_denets_queries_show_one_novel_class() -> None:
    images = images_of("denet")
    found = draw_episodes(get_protocol("denet"), images, 0, episodes=40)
    novel = set(range(1, 6))
    for one in found.episodes:
        assert set(images.items[one.query].pixels) & novel == set(one.classes)


def test_own_folds_depend_on_splits_and_seed() -> None:
    images, protocol = images_of("classes"), get_protocol("classes")
    found = [draw_episodes(protocol, images, fold, splits=3).classes for fold in range(3)]
    assert sorted(number for one in found for number in one) == list(images.classes)
    other = [draw_episodes(protocol, images, f, splits=3, split_seed=1).classes for f in range(3)]
    assert found != other


def test_a_list_is_written_and_read_and_belongs_to_its_set(tmp_path) -> None:
    images = images_of("classes")
    found = draw_episodes(get_protocol("classes"), images, 0)
    found.save(tmp_path / "episodes.json")
    assert EpisodeList.load(tmp_path / "episodes.json", images) == found
    other = Blocks("folder", 6, 90)
    with pytest.raises(ValueError, match=r"expected episodes of folder .* those of another folder"):
        EpisodeList.load(tmp_path / "episodes.json", other)
    (tmp_path / "broken.json").write_text('{"format": "fastfss-episodes-1", "set": ')
    with pytest.raises(ValueError, match=r"episodes '.*broken.json': expected a list"):
        EpisodeList.load(tmp_path / "broken.json", images)
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="another kind of file"):
        EpisodeList.load(tmp_path / "other.json", images)


@pytest.mark.parametrize(
    ("episode", "fault"),
    [
        ([[1], [[0]], 99, 0], "images beyond the set's 30"),
        ([[1], [[-1]], 2, 0], "images beyond the set's 30"),
        ([[1], [["0"]], 2, 0], "not whole numbers"),
        ([[1], [[True]], 2, 0], "not whole numbers"),
        ([[], [], 2, 0], r"classes \(\)"),
        ([[9], [[0]], 2, 0], r"classes \(9,\)"),
        ([[1], [[]], 2, 0], "no supports"),
        ([[1, 2], [[0]], 2, 0], "supports of 1 ways"),
        ([[1, 2], [[0], [1, 3]], 2, 0], "supports of 2 ways"),
    ],
)
def test_a_damaged_episode_is_named(tmp_path, episode: list[object], fault: str) -> None:
    images = Blocks("folder", 6, 30)
    plain = {"format": "fastfss-episodes-1", "set": "folder", "set_digest": images.digest}
    good = [[1], [[0]], 6, 0]
    path = tmp_path / "episodes.json"
    path.write_text(json.dumps({**plain, "classes": [1, 2], "episodes": [good, episode]}))
    with pytest.raises(ValueError, match=f"expected a list that fastfss wrote, got 1: {fault}"):
        EpisodeList.load(path, images)


def test_a_list_of_another_fold_or_setting_is_refused() -> None:
    images, protocol = images_of("classes"), get_protocol("classes")
    found = draw_episodes(protocol, images, 0, shots=2)
    found.check_fold(fold_of(protocol, images, 0), shots=2, ways=1)
    with pytest.raises(ValueError, match=r"a list of the fold's classes \[.*got one of \["):
        found.check_fold(fold_of(protocol, images, 1), shots=2, ways=1)
    with pytest.raises(ValueError, match="expected a list of 1 shots, got one of 2"):
        found.check_fold(found.classes, shots=1, ways=1)
    with pytest.raises(ValueError, match="expected a list of 2 ways, got one of 1"):
        found.check_fold(found.classes, shots=2, ways=2)


def test_fewer_episodes_of_fss1000_keep_every_class() -> None:
    images, protocol = Blocks("folder", 6, 60, size=(96, 128)), get_protocol("fss1000")
    whole = draw_episodes(protocol, images, 0).episodes
    few = draw_episodes(protocol, images, 0, episodes=12).episodes
    assert len(few) == 12 and set(few) < set(whole)
    assert {one.classes for one in few} == {one.classes for one in whole}
    assert draw_episodes(protocol, images, 0, episodes=len(whole) + 5).episodes == whole
    with pytest.raises(ValueError, match="episodes: expected at least 1, got 0"):
        draw_episodes(protocol, images, 0, episodes=0)


def test_what_cannot_be_drawn_is_named() -> None:
    few = Blocks("pascal", 20, 20, size=(96, 128))
    for name in ("hsnet", "ssp", "pfenet", "panet"):
        with pytest.raises(ValueError, match="at least"):
            draw_episodes(get_protocol(name), few, 0, shots=5)
    with pytest.raises(ValueError, match="ways: expected 1: the protocol 'hsnet' is of one way"):
        draw_episodes(get_protocol("hsnet"), images_of("hsnet"), 0, ways=2)
    with pytest.raises(ValueError, match="fold: expected 0 to 3, got 4"):
        draw_episodes(get_protocol("ssp"), images_of("ssp"), 4)
    with pytest.raises(ValueError, match="protocol: expected one of classes, denet"):
        get_protocol("mine")
    lonely = Blocks("folder", 6, 6)
    with pytest.raises(ValueError, match="a class with at least 9 images, got none"):
        draw_episodes(get_protocol("classes"), lonely, 0, shots=8)


def test_a_protocols_digest_tells_settings_apart() -> None:
    protocol = get_protocol("hsnet")
    assert protocol.digest(fold=0, shots=1) == protocol.digest(shots=1, fold=0)
    assert protocol.digest(fold=0, shots=1) != protocol.digest(fold=0, shots=5)
    assert protocol.digest(fold=0) != get_protocol("ssp").digest(fold=0)
