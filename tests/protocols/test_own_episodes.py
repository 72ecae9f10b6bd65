from __future__ import annotations

import random

import pytest
import torch

from fastfss.protocols import fss1000_episodes, pfenet_episodes, ssp_episodes
from fastfss.protocols.own_episodes import base_seed, worker_streams

# Stated by the specification, for torch.manual_seed(0) to (4).
BASE_SEEDS = (
    900450186894289455,
    7692698082559361259,
    8042686386972756495,
    937055941807507096,
    8615179906827886766,
)
SHOWN = {1: ["a", "b", "c", "d"], 2: ["b", "e", "f"], 3: ["g", "h"]}
LARGE = {1: ["a", "b", "c"], 2: ["b", "e", "f"], 3: ["g", "h"]}
ORDER = ["h", "g", "f", "e", "d", "c", "b", "a"]


@pytest.mark.parametrize("seed", range(5))
def test_base_seeds_are_those_that_pytorchs_loader_draws(seed: int) -> None:
    assert base_seed(torch.Generator().manual_seed(seed)) == BASE_SEEDS[seed]


def test_ssp_draws_query_then_class_then_supports_from_four_streams() -> None:
    found = ssp_episodes(SHOWN, LARGE, ORDER, shots=1, episodes=40, seed=2)
    streams = worker_streams(BASE_SEEDS[2], 4)
    queries = [name for name in ORDER if name != "d"]  # "d" shows nothing large
    for turn, episode in enumerate(found):
        stream = streams[turn % 4]
        query = stream.choice(queries)
        cls = stream.choice(sorted(c for c in SHOWN if query in SHOWN[c]))
        support = query
        while support == query or support not in LARGE[cls]:
            support = stream.choice(sorted((set(SHOWN[cls]) & set(queries)) - {query}))
        assert episode.classes == (cls,)
        assert SHOWN[cls][episode.queries[0][0]] == query
        assert SHOWN[cls][episode.supports[0][0]] == support


def test_images_that_ssp_drops_change_nothing() -> None:
    large = {1: [f"m{n}" for n in range(6)]}
    small = [f"a{n}" for n in range(5)]  # sorted before the others, all of them too small

    def drawn(shown: list[str]) -> list[tuple[str, str]]:
        found = ssp_episodes({1: shown}, large, shown, episodes=60)
        return [(shown[e.queries[0][0]], shown[e.supports[0][0]]) for e in found]

    assert drawn(small + large[1]) == drawn(large[1])


def test_ssp_supports_are_large_and_distinct() -> None:
    for episode in ssp_episodes(SHOWN, LARGE, ORDER, shots=1, episodes=200):
        (cls,), (support,) = episode.classes, episode.supports[0]
        assert SHOWN[cls][support] in LARGE[cls]
        assert support != episode.queries[0][0]
    more = {1: [str(n) for n in range(9)]}
    for episode in ssp_episodes(more, more, more[1], shots=5, episodes=50):
        assert len({*episode.supports[0], *episode.queries[0]}) == 6


def test_a_class_that_would_be_drawn_for_ever_is_named() -> None:
    lonely = {1: ["a", "b"], 2: ["b"]}
    for sampler in (ssp_episodes, pfenet_episodes):
        with pytest.raises(ValueError, match=r"index\[\d\]: expected at least 3 images"):
            sampler(lonely, lonely, ["a", "b"], shots=2, episodes=50)
        with pytest.raises(ValueError, match="shows a class of the fold large, got none"):
            sampler(lonely, {1: [], 2: []}, ["a", "b"], episodes=1)


def test_pfenet_takes_the_queries_in_order_and_one_episode_more() -> None:
    found = pfenet_episodes(SHOWN, LARGE, ORDER, episodes=15, workers=2)
    assert len(found) == 16
    queries = [name for name in ORDER if name != "d"]
    names = [SHOWN[e.classes[0]][e.queries[0][0]] for e in found]
    assert names == (queries * 3)[:16]


def test_pfenets_workers_begin_anew_with_every_pass() -> None:
    found = pfenet_episodes(SHOWN, LARGE, ORDER, episodes=13, workers=3)
    generator = torch.Generator().manual_seed(321)
    queries = [name for name in ORDER if name != "d"]
    place = 0
    for _ in range(2):
        base = base_seed(generator)
        streams = [random.Random(base + worker) for worker in range(3)]
        for turn, query in enumerate(queries):
            stream = streams[turn % 3]
            classes = sorted(c for c in SHOWN if query in SHOWN[c])
            cls = classes[stream.randint(1, len(classes)) - 1]
            support = query
            while support == query:
                support = LARGE[cls][stream.randint(1, len(LARGE[cls])) - 1]
            episode = found[place]
            assert episode.classes == (cls,)
            assert SHOWN[cls][episode.supports[0][0]] == support
            place += 1


def test_pfenet_goes_through_the_list_at_most_twenty_times() -> None:
    assert len(pfenet_episodes(SHOWN, LARGE, ORDER, episodes=5000)) == 20 * 7


@pytest.mark.parametrize("shots", [1, 5])
def test_fss1000_asks_for_every_image_once(shots: int) -> None:
    names = sorted(str(n) for n in range(1, 11))  # 1, 10, 2, ...
    index = {1: [f"x/{n}" for n in names], 2: [f"y/{n}" for n in names]}
    numbers = {c: [int(n) for n in names] for c in index}
    found = fss1000_episodes(index, numbers, shots=shots)
    assert [(e.classes[0], e.queries[0][0]) for e in found] == [
        (c, place) for c in (1, 2) for place in range(10)
    ]
    for episode in found:
        assert len(episode.supports[0]) == shots
        assert episode.queries[0][0] not in episode.supports[0]
    with pytest.raises(ValueError, match="at least 2 images"):
        fss1000_episodes({1: ["a"]}, {1: [1]})
