from __future__ import annotations

import random

import numpy as np
import pytest

from fastfss.protocols import (
    Episode,
    denet_episodes,
    denet_images,
    hsnet_drawn_episodes,
    hsnet_listed_episodes,
    panet_episodes,
)

INDEX = {
    number: [f"class{number}-{place}" for place in range(size)]
    for number, size in {9: 12, 6: 7, 8: 9, 7: 30}.items()
}


def some_index(seed: int, classes: int = 5, images: int = 60) -> dict[int, list[str]]:
    """Images that show one or two of the classes."""
    rng = np.random.default_rng(seed)
    index: dict[int, list[str]] = {number: [] for number in range(1, classes + 1)}
    for image in range(images):
        for number in rng.choice(classes, rng.integers(1, 3), replace=False):
            index[int(number) + 1].append(f"im{image}")
    return index


# PANet and PPNet.


def plainly_drawn(index, ways, shots, episodes, seed):
    """The published procedure on Python's global generator, as lists of (slot, place)."""
    random.seed(seed)
    origins = random.choices(range(ways), k=1)
    sizes = [len(index[number]) for number in sorted(index)]
    rows = []
    for _ in range(episodes):
        row = []
        for way, slot in enumerate(random.sample(range(len(sizes)), ways)):
            count = shots + origins.count(way)
            row += [(slot, place) for place in random.sample(range(sizes[slot]), count)]
        rows.append(row)
    return rows


@pytest.mark.parametrize(("ways", "shots"), [(1, 1), (1, 5), (2, 1), (3, 2), (4, 6)])
@pytest.mark.parametrize("seed", [1234, 1238])
def test_panet_draws_what_the_global_generator_would(ways, shots, seed):
    classes = sorted(INDEX)
    generator = random.Random(seed)
    drawn = panet_episodes(INDEX, ways=ways, shots=shots, episodes=30, generator=generator)
    rows = [
        [
            (classes.index(number), place)
            for number, support, query in zip(e.classes, e.supports, e.queries, strict=True)
            for place in (*support, *query)
        ]
        for e in drawn
    ]
    assert rows == plainly_drawn(INDEX, ways, shots, 30, seed)
    # The stream goes on where the global one would.
    assert generator.random() == random.random()


def test_samplers_leave_the_global_generators_alone():
    random.seed(5)
    np.random.seed(5)
    panet_episodes(INDEX, episodes=3)
    denet_episodes(INDEX, episodes=8)
    denet_images(INDEX, images=8)
    drawn = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    assert drawn == (random.random(), np.random.random())


def test_panet_episodes_are_sound():
    drawn = panet_episodes(INDEX, ways=3, shots=2, episodes=200, queries=2, unlabelled=1)
    assert len(drawn) == 200
    origins = {tuple(len(way) for way in e.queries) for e in drawn}
    assert len(origins) == 1 and sum(next(iter(origins))) == 2
    for episode in drawn:
        assert len(set(episode.classes)) == 3
        parts = (episode.supports, episode.queries, episode.unlabelled)
        for number, support, query, further in zip(episode.classes, *parts, strict=True):
            places = [*support, *query, *further]
            assert (len(support), len(further)) == (2, 1)
            assert len(set(places)) == len(places) and set(places) <= set(range(len(INDEX[number])))
    assert {n for e in drawn for n in e.classes} == set(INDEX)


def test_unlabelled_images_come_between_supports_and_queries():
    plain = panet_episodes(INDEX, shots=4, episodes=9, queries=1)
    ppnet = panet_episodes(INDEX, shots=2, unlabelled=2, episodes=9, queries=1)
    for left, right in zip(plain, ppnet, strict=True):
        assert left.supports[0] == right.supports[0] + right.unlabelled[0]
        assert left.queries == right.queries


def test_panet_without_a_generator_is_run_0():
    assert panet_episodes(INDEX, ways=2, episodes=20) == panet_episodes(
        INDEX, ways=2, episodes=20, generator=random.Random(1234)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 5}, r"index: expected at least 5 classes for 5 ways, got \[6, 7, 8, 9\]"),
        ({"shots": 7}, r"index\[6\]: expected at least 8 images for an episode, got 7"),
        ({"unlabelled": 6}, r"index\[6\]: expected at least 8 images"),
        ({"ways": 0}, "ways: expected at least 1, got 0"),
        ({"shots": 0}, "shots: expected at least 1, got 0"),
        ({"episodes": 0}, "episodes: expected at least 1, got 0"),
        ({"queries": 0}, "queries: expected at least 1, got 0"),
        ({"unlabelled": -1}, "unlabelled: expected at least 0, got -1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_panet_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        panet_episodes(INDEX, **options)


# DENet.


def denet_plainly(index, ways, shots, total, whole, train, seed):
    """The procedure on NumPy's global generator: lists of (classes, supports, query)."""
    np.random.seed(seed)
    classes, pairs = sorted(index), []
    for number in classes:
        wanted = total // len(classes)
        if number == classes[-1]:
            wanted += total % len(classes)
        images = index[number]
        if train and len(images) ** 2 < wanted:
            continue
        for _ in range(wanted):
            while True:
                support = [images[p] for p in np.random.choice(len(images), shots)]
                query = images[np.random.choice(len(images))]
                if len({*support, query}) == shots + 1:
                    break
            chosen = [number]
            if ways > 1:
                others = [n for n in classes if n != number]
                chosen += np.random.choice(others, ways - 1, replace=False).tolist()
                outside = [n for n in classes if n not in chosen]
                while query in support or any(query in whole[n] for n in outside):
                    query = images[np.random.choice(len(images))]
                for other in chosen[1:]:
                    more = [index[other][p] for p in np.random.choice(len(index[other]), shots)]
                    while len(set(more)) < shots:
                        more = [index[other][p] for p in np.random.choice(len(index[other]), shots)]
                    support = support + more
            pairs.append((chosen, support, query))
    np.random.shuffle(pairs)
    return pairs


def named(episode: Episode, index):
    supports = [
        index[number][place]
        for number, places in zip(episode.classes, episode.supports, strict=True)
        for place in places
    ]
    return list(episode.classes), supports, index[episode.classes[0]][episode.queries[0][0]]


@pytest.mark.parametrize(("ways", "shots"), [(1, 1), (1, 5), (2, 1), (2, 3), (3, 2), (5, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_denet_draws_what_the_global_generator_would(ways, shots, seed):
    index = some_index(seed)
    # The index leaves out images that show a class too small; `whole` has them all.
    whole = {number: [*images, f"im{number * 7}"] for number, images in index.items()}
    generator = np.random.RandomState(seed)
    drawn = denet_episodes(
        index, ways=ways, shots=shots, episodes=43, whole=whole, generator=generator
    )
    wanted = denet_plainly(index, ways, shots, 43, whole, False, seed)
    assert [named(episode, index) for episode in drawn] == wanted
    assert generator.random_sample() == np.random.random_sample()


@pytest.mark.parametrize("small", [1, 3, 5])
def test_small_classes_are_skipped_in_training(small):
    index = some_index(4)
    index[small] = index[small][:2]
    drawn = denet_episodes(index, episodes=53, skip_small=True)
    assert [named(e, index) for e in drawn] == denet_plainly(index, 1, 1, 53, None, True, 1234)
    share = 13 if small == 5 else 10  # the last class's share has the remainder
    assert len(drawn) == 53 - share and all(small not in e.classes for e in drawn)
    # 2 images make 4 pairs: a share of 4 is kept.
    assert len(denet_episodes(index, episodes=20, skip_small=True)) == 20


def test_denet_episodes_are_sound():
    index = some_index(7)
    shown = {image: {n for n in index if image in index[n]} for n in index for image in index[n]}
    drawn = denet_episodes(index, ways=2, shots=2, episodes=203, whole=index)
    assert len(drawn) == 203
    firsts = [e.classes[0] for e in drawn]
    assert [firsts.count(number) for number in sorted(index)] == [40, 40, 40, 40, 43]
    assert firsts != sorted(firsts)
    for episode in drawn:
        classes, supports, query = named(episode, index)
        assert len(set(classes)) == 2 and episode.queries[1] == ()
        assert shown[query] <= set(classes) and query not in supports[:2]
        assert all(len(set(places)) == 2 for places in episode.supports)


def test_lists_from_one_generator_go_on_in_its_stream():
    generator = np.random.RandomState(1234)
    first = denet_episodes(INDEX, episodes=20, generator=generator)
    second = denet_episodes(INDEX, episodes=20, generator=generator)
    assert first == denet_episodes(INDEX, episodes=20)
    assert second != first


def test_a_repeated_file_does_not_fill_an_episode():
    index = {1: ["a", "a", "b"], 2: ["c", "d"]}
    for episode in denet_episodes(index, episodes=60):
        _, supports, query = named(episode, index)
        assert query not in supports


@pytest.mark.parametrize(
    ("index", "options", "message"),
    [
        (INDEX, {"ways": 5}, "index: expected at least 5 classes for 5 ways"),
        (INDEX, {"ways": 2}, "whole: expected the images of every class at any size for 2 ways"),
        (INDEX, {"shots": 7}, r"index\[6\]: expected at least 8 images for an episode, got 7"),
        ({1: ["a", "a"]}, {}, r"index\[1\]: expected at least 2 images for an episode, got 1"),
        ({1: ["a"], 2: []}, {}, r"index\[2\]: expected at least one image, got none"),
        ({}, {}, r"index: expected at least 1 classes for 1 ways, got \[\]"),
        (INDEX, {"shots": 0}, "shots: expected at least 1, got 0"),
    ],
    ids=["ways", "whole", "shots", "repeated", "empty class", "empty", "no shot"],
)
def test_denet_bad_input(index, options, message):
    with pytest.raises(ValueError, match=message):
        denet_episodes(index, **options)


def test_a_query_that_no_image_can_be_is_an_error():
    """Where the published sampler draws for ever: every image of class 1 shows another class."""
    index = {1: ["a", "b", "c"], 2: ["d", "e"], 3: ["a", "b", "c"], 4: ["b", "c", "a"]}
    with pytest.raises(
        ValueError, match=r"index\[1\]: expected an image that shows no class but \[1, \d\] and is"
    ):
        denet_episodes(index, ways=2, episodes=8, whole=index)


def test_a_class_that_cannot_fill_its_way_is_an_error():
    """Class 3 has no share of one episode, but may be drawn as the other way."""
    index = {3: ["a", "a"], 4: [f"b{n}" for n in range(9)]}
    with pytest.raises(ValueError, match=r"index\[3\]: expected at least 2 images .* got 1"):
        denet_episodes(index, ways=2, shots=2, episodes=1, whole=index)


def test_denet_images_are_balanced_and_drawn_as_from_the_global_generator():
    index = some_index(2)
    drawn = denet_images(index, images=48)
    np.random.seed(1234)
    wanted = []
    for number in sorted(index):
        for _ in range(48 // 5 + (48 % 5) * (number == 5)):
            wanted.append((number, np.random.choice(len(index[number]))))
    np.random.shuffle(wanted)
    assert drawn == [tuple(pair) for pair in wanted]
    with pytest.raises(ValueError, match="images: expected at least 1, got 0"):
        denet_images(index, images=0)


# HSNet.


@pytest.mark.parametrize("shots", [1, 5])
def test_hsnet_draws_as_published_without_the_global_generator(shots: int) -> None:
    listed = [(number, place) for number in (9, 6) for place in range(len(INDEX[number]))]
    drawn = hsnet_listed_episodes(INDEX, listed, shots=shots, episodes=40)
    np.random.seed(0)
    for turn, episode in enumerate(drawn):
        number, place = listed[turn % len(listed)]
        names = []
        while len(names) < shots:
            name = np.random.choice(INDEX[number], 1, replace=False)[0]
            if name != INDEX[number][place]:
                names.append(name)
        assert episode.classes == (number,)
        assert episode.queries == ((place,),)
        assert [INDEX[number][support] for support in episode.supports[0]] == names


def test_hsnet_draws_class_query_and_supports_from_one_stream() -> None:
    drawn = hsnet_drawn_episodes(INDEX, shots=2, episodes=30)
    np.random.seed(0)
    for episode in drawn:
        number = int(np.random.choice(sorted(INDEX), 1, replace=False)[0])
        query = np.random.choice(INDEX[number], 1, replace=False)[0]
        assert (episode.classes, INDEX[number][episode.queries[0][0]]) == ((number,), query)
        for support in episode.supports[0]:
            name = query
            while name == query:
                name = np.random.choice(INDEX[number], 1, replace=False)[0]
            assert INDEX[number][support] == name


def test_hsnet_refuses_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match=r"listed: expected at least one query, got none"):
        hsnet_listed_episodes(INDEX, [])
    with pytest.raises(ValueError, match=r"listed: expected classes and places .* got \(6, 7\)"):
        hsnet_listed_episodes(INDEX, [(6, 7)])
    with pytest.raises(ValueError, match=r"index\[1\]: expected at least 2 images"):
        hsnet_drawn_episodes({1: ["a", "a"]})
    with pytest.raises(ValueError, match="shots: expected at least 1, got 0"):
        hsnet_drawn_episodes(INDEX, shots=0)
