from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fastfss.training.recipe import DataConfig
from fastfss.training.samplers import Drawn, Sampler, make_sampler

LARGE = {1: [0, 1, 2, 5], 2: [1, 3, 4], 7: [0, 2, 4, 6, 7]}
SHOWN = {1: [0, 1, 2, 5, 7], 2: [1, 3, 4, 8], 7: [0, 2, 4, 6, 7]}  # 8 shows a small 2 alone
NAMES = {1: "one", 2: "two", 7: "seven"}
EPISODES = ("query", "images", "pairs", "class", "balanced")


def sampler(name: Any, seed: int = 0, **settings: Any) -> Sampler:
    config = DataConfig(set="folder", sampler=name, **{"episodes": 30, **settings})
    return make_sampler(LARGE, SHOWN, config, seed, NAMES)


def draws(one: Sampler, count: int = 200) -> list[Drawn]:
    return [one.draw(number) for number in range(count)]


@pytest.mark.parametrize("shots", [1, 2])
@pytest.mark.parametrize("name", EPISODES)
def test_an_episode_shows_its_class_in_other_images(name: str, shots: int) -> None:
    for drawn in draws(sampler(name, shots=shots)):
        (chosen,), (supports,) = drawn.classes, drawn.supports
        assert len(supports) == shots
        assert drawn.query not in supports
        assert set(supports) <= set(LARGE[chosen])
        assert drawn.query in SHOWN[chosen]


@pytest.mark.parametrize("name", (*EPISODES, "equal", "single", "interactive"))
def test_an_episode_depends_on_its_number_and_the_seed_alone(name: str) -> None:
    forward = draws(sampler(name))
    one = sampler(name)
    assert [one.draw(number) for number in reversed(range(200))][::-1] == forward
    assert draws(sampler(name, seed=1)) != forward


@pytest.mark.parametrize("name, each", [("images", 8), ("pairs", 12), ("interactive", 12)])
def test_a_pass_has_every_query_once_and_the_next_another_order(name: str, each: int) -> None:
    one = sampler(name)
    assert one.length == each
    passes = [[one.draw(n + each * turn).query for n in range(each)] for turn in range(2)]
    assert Counter(passes[0]) == Counter(passes[1])
    assert passes[0] != passes[1]


def test_a_small_object_alone_is_no_query() -> None:
    assert 8 not in {drawn.query for drawn in draws(sampler("query"))}


def test_a_small_object_beside_a_large_one_may_be_the_querys_class() -> None:
    assert (1,) in {drawn.classes for drawn in draws(sampler("query")) if drawn.query == 7}


def test_supports_are_uniform() -> None:
    counted = Counter(
        drawn.supports[0][0] for drawn in draws(sampler("pairs"), 6000) if drawn.query == 3
    )
    assert set(counted) == {1, 4}
    assert counted[1] == pytest.approx(counted[4], rel=0.2)


def test_several_ways_have_other_classes_and_one_query() -> None:
    one = sampler("class", ways=2, shots=2)
    for drawn in draws(one):
        assert len(set(drawn.classes)) == 2
        assert [len(way) for way in drawn.supports] == [2, 2]
        origin = drawn.classes[one.origin]  # type: ignore[attr-defined]
        assert drawn.query in LARGE[origin]
        assert drawn.query not in drawn.supports[one.origin]  # type: ignore[attr-defined]


def test_balanced_episodes_show_every_class_equally_often() -> None:
    one = sampler("balanced", episodes=9)
    assert Counter(drawn.classes[0] for drawn in draws(one, 9)) == {1: 3, 2: 3, 7: 3}


def test_equal_pairs_show_every_class_as_often_as_the_rarest() -> None:
    one = sampler("equal")
    assert one.length == 9
    passed = draws(one, 9)
    assert Counter(drawn.classes[0] for drawn in passed) == {1: 3, 2: 3, 7: 3}
    assert len({(drawn.query, drawn.classes) for drawn in passed}) == 9
    assert any(drawn.query in drawn.supports[0] for drawn in draws(one)), "as published"


def test_a_list_longer_than_the_classes_can_fill_is_named() -> None:
    # The published rule: a class whose squared number of images is below its share is left out.
    assert sampler("balanced", episodes=75).length > 0
    with pytest.raises(ValueError, match=r"data\.episodes: expected at most 75: .*got 90"):
        sampler("balanced", episodes=90)


def test_single_images_have_no_support() -> None:
    assert all(drawn.supports == () for drawn in draws(sampler("single")))


def test_an_interactive_query_is_its_own_support() -> None:
    for drawn in draws(sampler("interactive")):
        assert drawn.supports == ((drawn.query,),)
        assert drawn.query in LARGE[drawn.classes[0]]


def test_one_image_of_a_class_is_enough_where_it_is_annotated_itself() -> None:
    config = DataConfig(set="folder", sampler="interactive")
    assert make_sampler({1: [4]}, {1: [4]}, config, 0, NAMES).draw(0).query == 4


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(ValueError, match=r"class 'two': expected at least 4 images.*skip_rare"):
        sampler("query", shots=3)


def test_more_ways_than_classes_are_named() -> None:
    with pytest.raises(ValueError, match=r"data\.ways: expected at least 4 classes"):
        sampler("class", ways=4)


def test_the_digest_tells_other_episodes() -> None:
    first = sampler("query").digest
    assert first == sampler("query").digest
    assert len({first, sampler("query", seed=1).digest, sampler("images").digest}) == 3
