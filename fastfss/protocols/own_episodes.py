"""The samplers that draw from Python's generator inside loader workers: SSP and MLC, and PFENet.

PyTorch seeds worker w of a loader with b + w, b being drawn from torch's generator where the loop
begins; with batches of one, worker i mod n makes item i. No worker is started here: the streams of
the workers are read in turn, which gives the published episodes with any number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from fastfss.errors import expected
from fastfss.protocols.episodes import Episode, check_counts, too_few

SSP_WORKERS = 4
PFENET_WORKERS = {"pascal": 8, "coco": 16}
PFENET_SEED = 321
PFENET_PASSES = 20


def worker_streams(base: int, workers: int) -> list[random.Random]:
    """The generators of a loader's workers."""
    return [random.Random(base + worker) for worker in range(workers)]


def base_seed(generator: torch.Generator) -> int:
    """What a loader draws where a loop over it begins."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def ssp_episodes(
    shown: Mapping[int, Sequence[str]],
    large: Mapping[int, Sequence[str]],
    order: Sequence[str],
    *,
    shots: int = 1,
    episodes: int = 1000,
    seed: int = 0,
    workers: int = SSP_WORKERS,
) -> list[Episode]:
    """Draw one run of SSP's and MLC's own protocol.

    Images that show no class of the fold large are dropped first. A query is drawn from the others,
    then one of all the classes of the fold that it shows, then supports of that class, each drawn
    again until it is large. Published: seeds 0 to 4, of which the figure is the mean.

    Args:
        shown: class of the fold -> names of the images that show it at any size.
        large: class of the fold -> names of those that show it large.
        order: the names in the list's order.
        shots: K.
        episodes: how many.
        seed: torch's.
        workers: of the published loader.

    Returns:
        The episodes; places are those in `shown[class]`.

    Raises:
        ValueError: no query, or a class without enough large images beside one of its queries,
            where the published loader draws for ever.
    """
    check_counts(shots=shots, episodes=episodes, workers=workers)
    classes_of = _by_image(shown)
    enough = {number: set(large[number]) for number in shown}
    queries = _listed([n for n in order if any(n in enough[c] for c in classes_of.get(n, ()))])
    # A dropped image is no candidate even where the class that it shows small is asked for: one
    # name more in the list would change every later draw of its stream.
    kept = set(queries)
    members = {number: sorted(kept.intersection(shown[number])) for number in shown}
    places = {number: {name: place for place, name in enumerate(shown[number])} for number in shown}
    streams = worker_streams(base_seed(torch.Generator().manual_seed(seed)), workers)
    drawn = []
    for turn in range(episodes):
        stream = streams[turn % workers]
        query = stream.choice(queries)
        number = stream.choice(sorted(classes_of[query]))
        if len(enough[number] - {query}) < shots:
            raise too_few(number, shots + 1, len(enough[number] - {query}) + 1)
        chosen: list[str] = []
        while len(chosen) < shots:
            left = [name for name in members[number] if name != query and name not in chosen]
            name = stream.choice(left)
            if name in enough[number]:
                chosen.append(name)
        drawn.append(_episode(number, chosen, query, places[number]))
    return drawn


def pfenet_episodes(
    shown: Mapping[int, Sequence[str]],
    large: Mapping[int, Sequence[str]],
    order: Sequence[str],
    *,
    shots: int = 1,
    episodes: int = 5000,
    seed: int = PFENET_SEED,
    workers: int = 8,
) -> list[Episode]:
    """Draw PFENet's test episodes: the listed queries in order, over and over.

    Each pass over the list begins with a new base seed of the workers. Published: 5000 episodes for
    PASCAL and 20000 for COCO, of which the loop makes one more, and at most 20 passes. No published
    list of its episodes is known to compare with.

    Args:
        shown: as in `ssp_episodes`.
        large: likewise.
        order: likewise.
        shots: likewise.
        episodes: likewise.
        seed: of torch where the loop begins.
        workers: of the published loader: 8 for PASCAL, 16 for COCO.

    Raises:
        ValueError: as `ssp_episodes`.
    """
    check_counts(shots=shots, episodes=episodes, workers=workers)
    classes_of = _by_image(shown)
    sizes = {number: set(large[number]) for number in large}
    queries = _listed([n for n in order if any(n in sizes[c] for c in classes_of.get(n, ()))])
    places = {number: {name: place for place, name in enumerate(shown[number])} for number in shown}
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Episode] = []
    for _ in range(PFENET_PASSES):
        streams = worker_streams(base_seed(generator), workers)
        for turn, query in enumerate(queries):
            if len(drawn) > episodes:  # one more than asked for, as published
                return drawn
            stream = streams[turn % workers]
            classes = sorted(classes_of[query])
            number = classes[stream.randint(1, len(classes)) - 1]
            members = large[number]
            if len(sizes[number] - {query}) < shots:
                raise too_few(number, shots + 1, len(sizes[number] - {query}) + 1)
            chosen: list[str] = []
            for _ in range(shots):
                name = query
                while name == query or name in chosen:
                    name = members[stream.randint(1, len(members)) - 1]
                chosen.append(name)
            # Published supports are stacked in reverse order of drawing.
            drawn.append(_episode(number, chosen[::-1], query, places[number]))
    return drawn


def _by_image(shown: Mapping[int, Sequence[str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, names in shown.items():
        for name in names:
            found.setdefault(name, []).append(number)
    return found


def _listed(queries: list[str]) -> list[str]:
    if not queries:
        raise expected("index", "an image that shows a class of the fold large", "none")
    return queries


def _episode(
    number: int, supports: Sequence[str], query: str, places: Mapping[str, int]
) -> Episode:
    return Episode((number,), (tuple(places[name] for name in supports),), ((places[query],),))
