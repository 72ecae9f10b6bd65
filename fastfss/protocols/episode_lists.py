"""Lists of episodes: drawn by a protocol for a set, written, and read again."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastfss.atomic import write_text_atomically
from fastfss.data.lists import make_hsnet_list, read_hsnet_lists
from fastfss.data.sets import MaskSet
from fastfss.errors import expected
from fastfss.protocols.episodes import (
    Episode,
    check_counts,
    denet_episodes,
    panet_episodes,
)
from fastfss.protocols.folds import fold_classes
from fastfss.protocols.hsnet_episodes import (
    fss1000_episodes,
    hsnet_drawn_episodes,
    hsnet_listed_episodes,
)
from fastfss.protocols.own_episodes import PFENET_WORKERS, pfenet_episodes, ssp_episodes
from fastfss.protocols.protocol import Protocol
from fastfss.reading import read_json

FORMAT = "fastfss-episodes-1"
# What the protocol "classes" draws for each class, and sets without a published number get in all.
QUERIES_OF_CLASS = 10
OTHER_EPISODES = 1000


@dataclass(frozen=True)
class ListedEpisode:
    """An episode by the numbers of its images in the set.

    Attributes:
        classes: the W classes.
        supports: of each way its K images.
        query: the image to segment.
        run: of a protocol of several runs, from 0.
    """

    classes: tuple[int, ...]
    supports: tuple[tuple[int, ...], ...]
    query: int
    run: int = 0


@dataclass(frozen=True)
class EpisodeList:
    """The episodes of one fold.

    Attributes:
        set_name, set_digest: of the set that the numbers count in.
        classes: the fold's novel classes.
        episodes: in order.
    """

    set_name: str
    set_digest: str
    classes: tuple[int, ...]
    episodes: tuple[ListedEpisode, ...]

    @cached_property
    def digest(self) -> str:
        """sha256 over all of it."""
        return hashlib.sha256(json.dumps(self._plain()).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the list as JSON; an interrupted write leaves an old file as it was."""
        write_text_atomically(Path(path), json.dumps(self._plain()) + "\n")

    @staticmethod
    def load(path: str | Path, images: MaskSet) -> EpisodeList:
        """Read a list that `save` has written, for a set.

        Raises:
            ValueError: another file, or a list of other images.
        """
        try:
            plain = read_json(Path(path), "its text")
            if not isinstance(plain, dict) or plain.get("format") != FORMAT:
                raise ValueError("another kind of file")
            episodes = tuple(
                ListedEpisode(tuple(c), tuple(tuple(way) for way in s), q, r)
                for c, s, q, r in plain["episodes"]
            )
            found = EpisodeList(
                plain["set"], plain["set_digest"], tuple(plain["classes"]), episodes
            )
            if not all(type(number) is int for number in found.classes):
                raise ValueError("classes that are not whole numbers")
        except (KeyError, TypeError, ValueError) as error:
            raise expected(f"episodes '{path}'", "a list that fastfss wrote", str(error)) from None
        if found.set_digest != images.digest:
            wanted = f"episodes of {images.name} in '{images.root}'"
            raise expected(f"episodes '{path}'", wanted, f"those of another {found.set_name}")
        for turn, one in enumerate(found.episodes):
            if fault := _fault(one, found.classes, len(images.items)):
                raise expected(
                    f"episodes '{path}'", "a list that fastfss wrote", f"{turn}: {fault}"
                )
        return found

    def check_fold(self, classes: Sequence[int], *, shots: int, ways: int) -> None:
        """See whether the list is of a fold and setting.

        Args:
            classes: the fold's novel classes; see fold_of.
            shots: K.
            ways: W.

        Raises:
            ValueError: it is of another; what differs is said.
        """
        if set(self.classes) != set(classes):
            wanted = f"a list of the fold's classes {sorted(classes)}"
            raise expected("episodes", wanted, f"one of {sorted(self.classes)}")
        for one in self.episodes:
            for name, wanted_count, count in (
                ("ways", ways, len(one.classes)),
                ("shots", shots, len(one.supports[0])),
            ):
                if count != wanted_count:
                    raise expected(
                        "episodes", f"a list of {wanted_count} {name}", f"one of {count}"
                    )

    def _plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "set": self.set_name,
            "set_digest": self.set_digest,
            "classes": self.classes,
            "episodes": [(e.classes, e.supports, e.query, e.run) for e in self.episodes],
        }


def draw_episodes(
    protocol: Protocol,
    images: MaskSet,
    fold: int,
    *,
    shots: int = 1,
    ways: int = 1,
    episodes: int | None = None,
    splits: int = 4,
    split_seed: int = 0,
    lists: str | Path | None = None,
) -> EpisodeList:
    """Draw the episodes of a fold as the protocol does.

    Args:
        protocol: see get_protocol.
        images: the set's test images.
        fold: whose classes are novel.
        shots: K.
        ways: W.
        episodes: of a run; the published number by default. Of "classes": queries of each class. Of
            "fss1000": as many of its list, taken evenly.
        splits: of sets without published folds.
        split_seed: likewise.
        lists: a folder of HSNet's published lists. Made again from the masks without them, COCO's
            episodes are others than the published, from the same distribution.

    Raises:
        ValueError: several ways by a sampler of one, no such fold, or a class with too few images;
            it is named.
    """
    if ways > 1 and protocol.sampler not in ("panet", "denet"):
        raise expected("ways", f"1: the protocol {protocol.name!r} is of one way", str(ways))
    kind = images.name
    classes = fold_of(protocol, images, fold, splits=splits, split_seed=split_seed)
    if episodes is not None:
        check_counts(episodes=episodes)
    whole = 0 if protocol.sampler == "fss1000" else OTHER_EPISODES
    count = episodes or protocol.episodes.get(kind, whole)
    drawn: list[ListedEpisode] = []
    for run in range(protocol.runs):
        make = _SAMPLERS[protocol.sampler]
        call = _Call(protocol, images, fold, classes, shots, ways, count, run, lists)
        index, listed = make(call)
        drawn += [_resolved(one, index, run) for one in listed]
    if protocol.sampler == "class":
        drawn = _by_class(images, classes, shots, episodes or QUERIES_OF_CLASS, protocol.seed)
    return EpisodeList(kind, images.digest, classes, tuple(drawn))


def fold_of(
    protocol: Protocol, images: MaskSet, fold: int, *, splits: int = 4, split_seed: int = 0
) -> tuple[int, ...]:
    """The novel classes of a fold; arguments and errors as those of draw_episodes."""
    return fold_classes(
        images.classes,
        protocol.fold_rule(images.name),
        fold,
        folds=4 if images.name in protocol.folds else splits,
        seed=split_seed,
    )


def _fault(episode: ListedEpisode, classes: Sequence[int], images: int) -> str:
    """What is wrong with an episode that was read from a file; empty if nothing."""
    members = [*(member for way in episode.supports for member in way), episode.query]
    if not all(type(one) is int for one in (*members, *episode.classes, episode.run)):
        return "not whole numbers"
    if not episode.classes or not set(episode.classes) <= set(classes):
        return f"classes {episode.classes}"
    if len(episode.supports) != len(episode.classes) or len(set(map(len, episode.supports))) != 1:
        return f"supports of {len(episode.supports)} ways"
    if len(members) == 1:
        return "no supports"
    if not all(0 <= member < images for member in members):
        return f"images beyond the set's {images}"
    return ""


@dataclass(frozen=True)
class _Call:
    protocol: Protocol
    images: MaskSet
    fold: int
    classes: tuple[int, ...]
    shots: int
    ways: int
    episodes: int
    run: int
    lists: str | Path | None


Index = Mapping[int, Sequence[int]]


def _resolved(episode: Episode, index: Index, run: int) -> ListedEpisode:
    (query,) = (
        index[number][place]
        for number, places in zip(episode.classes, episode.queries, strict=True)
        for place in places
    )
    supports = tuple(
        tuple(index[number][place] for place in places)
        for number, places in zip(episode.classes, episode.supports, strict=True)
    )
    return ListedEpisode(episode.classes, supports, query, run)


def _of_fold(call: _Call, minimum: int) -> dict[int, list[int]]:
    index = call.images.index(minimum)
    found = {number: index[number] for number in call.classes}
    for number, members in found.items():
        if len(members) < call.shots + 1:
            name = call.images.classes[number]
            wanted = f"at least {call.shots + 1} images of class {number} ({name})"
            if minimum > 1:
                wanted += f" with {minimum} pixels of it"
            raise expected("data", wanted, str(len(members)))
    return found


def _hsnet(call: _Call) -> tuple[Index, list[Episode]]:
    images = call.images
    if images.name in ("pascal", "coco"):
        if call.lists is not None:
            listed = read_hsnet_lists(call.lists, images.name, "val")[call.fold]  # type: ignore[arg-type]
        else:
            listed = make_hsnet_list(images, "val", call.fold, call.protocol.minimum)
        pairs = listed.places(images)
    else:
        index = _of_fold(call, call.protocol.minimum)
        pairs = [(number, place) for number in index for place in index[number]]
    found: dict[int, list[int]] = {number: [] for number in call.classes}
    places = []
    for number, item in pairs:
        places.append((number, len(found[number])))
        found[number].append(item)
    if images.name == "pascal":
        return found, hsnet_listed_episodes(found, places, shots=call.shots, episodes=call.episodes)
    return found, hsnet_drawn_episodes(found, shots=call.shots, episodes=call.episodes)


def _fss1000(call: _Call) -> tuple[Index, list[Episode]]:
    index = _of_fold(call, 1)
    names = [item.name for item in call.images.items]
    ordered = {c: sorted(members, key=names.__getitem__) for c, members in index.items()}
    numbers = {c: [_number(names[m]) for m in members] for c, members in ordered.items()}
    drawn = fss1000_episodes(ordered, numbers, shots=call.shots)
    wanted = min(call.episodes or len(drawn), len(drawn))
    # Fewer than published are taken evenly, so that all classes keep some.
    return ordered, [drawn[turn * len(drawn) // wanted] for turn in range(wanted)]


def _number(name: str) -> int:
    stem = name.rsplit("/", 1)[-1]
    return int(stem) if stem.isdigit() else 0


def _by_name(
    call: _Call,
) -> tuple[dict[int, list[int]], dict[int, list[str]], dict[int, list[str]]]:
    """The images of each class, their names, and the names of those that show it large."""
    names = [item.name for item in call.images.items]
    shown, large = call.images.index(1), _of_fold(call, call.protocol.minimum)
    index = {number: shown[number] for number in call.classes}
    by_name = {c: [names[m] for m in members] for c, members in index.items()}
    return index, by_name, {c: [names[m] for m in members] for c, members in large.items()}


def _ssp(call: _Call) -> tuple[Index, list[Episode]]:
    index, shown, large = _by_name(call)
    order = [item.name for item in call.images.items]
    seed = call.protocol.seed + call.run
    return index, ssp_episodes(
        shown, large, order, shots=call.shots, episodes=call.episodes, seed=seed
    )


def _pfenet(call: _Call) -> tuple[Index, list[Episode]]:
    index, shown, large = _by_name(call)
    order = [item.name for item in call.images.items]
    workers = PFENET_WORKERS.get(call.images.name, 8)
    return index, pfenet_episodes(
        shown,
        large,
        order,
        shots=call.shots,
        episodes=call.episodes,
        seed=call.protocol.seed,
        workers=workers,
    )


def _panet(call: _Call) -> tuple[Index, list[Episode]]:
    index = _of_fold(call, 1)
    generator = random.Random(call.protocol.seed + call.run)
    return index, panet_episodes(
        index, ways=call.ways, shots=call.shots, episodes=call.episodes, generator=generator
    )


def _denet(call: _Call) -> tuple[Index, list[Episode]]:
    share = call.protocol.minimum_share.get(call.images.name, 0.02)
    whole = _of_fold(call, 1)
    novel = set(call.classes)

    def large(item: int, number: int) -> bool:
        entry = call.images.items[item]
        if entry.size is not None:
            area = entry.size[0] * entry.size[1]
        else:
            area = call.images.image(item)[0].numel()
        return entry.pixels[number] >= share * area

    index = {c: [m for m in members if large(m, c)] for c, members in whole.items()}
    if call.ways == 1:
        shown: dict[int, set[int]] = {}
        for number, members in index.items():
            for member in members:
                shown.setdefault(member, set()).add(number)
        index = {c: [m for m in ms if shown[m] & novel == {c}] for c, ms in index.items()}
    generator = np.random.RandomState(call.protocol.seed)
    return index, denet_episodes(
        index,
        ways=call.ways,
        shots=call.shots,
        episodes=call.episodes,
        whole=whole,
        generator=generator,
    )


def _nothing(call: _Call) -> tuple[Index, list[Episode]]:
    return {}, []


_SAMPLERS = {
    "hsnet": _hsnet,
    "fss1000": _fss1000,
    "pfenet": _pfenet,
    "panet": _panet,
    "ssp": _ssp,
    "denet": _denet,
    "class": _nothing,
}


def _by_class(
    images: MaskSet, classes: Sequence[int], shots: int, queries: int, seed: int
) -> list[ListedEpisode]:
    """Up to `queries` episodes of each class with enough images; a class's depend on it alone."""
    index = images.index(1)
    drawn = []
    for number in classes:
        members = index[number]
        if len(members) <= shots:
            continue
        generator = random.Random(f"{seed} {images.classes[number]}")
        for query in generator.sample(members, min(queries, len(members))):
            others = [member for member in members if member != query]
            supports = tuple(generator.sample(others, shots))
            drawn.append(ListedEpisode((number,), (supports,), query))
    if not drawn:
        wanted = f"a class with at least {shots + 1} images"
        raise expected("data", wanted, f"none of {len(classes)} held-out classes")
    return drawn
