"""Runs the cases of PANet's and DENet's episode samplers; every index must agree."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import torch

from fastfss.protocols import (
    Episode,
    denet_episodes,
    denet_images,
    hsnet_drawn_episodes,
    hsnet_listed_episodes,
    panet_episodes,
)
from tests.parity.golden import Case, Report

DENET_SEED = 1234  # the file's `seed` is that of its lists, see its note

File = tuple[str, str]  # image, mask


def run_panet_sampler(case: Case, report: Report) -> None:
    sizes = case["class_sizes"].tolist()
    index = {slot: range(size) for slot, size in enumerate(sizes)}
    for key in (key for key in case.arrays if key.startswith("indices_")):
        setting = key.removeprefix("indices_")
        ways, shots = _setting(setting)
        wanted = case[key]
        queries = case[f"cnt_query_{setting}"].tolist()
        drawn = panet_episodes(
            index,
            ways=ways,
            shots=shots,
            episodes=len(wanted),
            queries=sum(queries),
            generator=random.Random(int(case["seed"])),
        )
        for episode in drawn:
            assert [len(way) for way in episode.queries] == queries
        rows = [_slots_and_places(episode) for episode in drawn]
        report.compare(key, torch.tensor(rows), wanted, tolerance=0)


def _slots_and_places(episode: Episode) -> list[tuple[int, int]]:
    ways = zip(episode.classes, episode.supports, episode.queries, strict=True)
    return [(slot, place) for slot, shots, queries in ways for place in (*shots, *queries)]


def run_denet_sampler(case: Case, report: Report) -> None:
    items = json.loads(str(case["items"]))
    whole = {
        int(number): [tuple(file) for file in files]
        for number, files in json.loads(str(case["whole"])).items()
    }
    index = _index(items)
    assert sorted(index) == sorted(case["novel"].tolist())
    for key, wanted in json.loads(str(case["expected"])).items():
        numbers = [int(number) for number in re.findall(r"\d+", key)]
        generator = np.random.RandomState(DENET_SEED)
        if key.startswith("query_train"):
            chosen = denet_images(index, images=numbers[0], generator=generator)
            found: list[object] = [list(index[number][place]) for number, place in chosen]
        else:
            # "train_1way_1shot_40_first20items"; without "train" a test list of all items.
            train = key.startswith("train")
            files = _index(items[: numbers[3]]) if train else index
            ways, shots, episodes = numbers[:3]
            drawn = denet_episodes(
                files,
                ways=ways,
                shots=shots,
                episodes=episodes,
                whole=whole,
                skip_small=train,
                generator=generator,
            )
            found = [_files(episode, files) for episode in drawn]
        # Names, not numbers: the count of list entries that differ is the error.
        assert len(found) == len(wanted), key
        wrong = sum(ours != theirs for ours, theirs in zip(found, wanted, strict=True))
        report.compare(key, torch.tensor(float(wrong)), np.zeros(()), tolerance=0)


def _index(items: list[tuple[str, str, int]]) -> dict[int, list[File]]:
    index: dict[int, list[File]] = {}
    for image, mask, number in items:
        index.setdefault(number, []).append((image, mask))
    return index


def _files(episode: Episode, index: dict[int, list[File]]) -> list[object]:
    """An episode as the file writes it: images, masks, query, its mask, class or classes."""
    supports = [
        index[number][place]
        for number, places in zip(episode.classes, episode.supports, strict=True)
        for place in places
    ]
    query = index[episode.classes[0]][episode.queries[0][0]]
    classes = episode.classes[0] if len(episode.classes) == 1 else list(episode.classes)
    return [[image for image, _ in supports], [mask for _, mask in supports], *query, classes]


def _setting(name: str) -> tuple[int, int]:
    """ "2way_5shot" -> (2, 5)."""
    ways, shots = re.findall(r"\d+", name)
    return int(ways), int(shots)


def run_hsnet_sampling(case: Case, report: Report) -> None:
    shots = int(case["shots"])
    pascal: dict[int, list[str]] = {}
    listed = []
    for line in (str(line) for line in case["pascal_lines"]):
        name, _, number = line.rpartition("__")
        images = pascal.setdefault(int(number) - 1, [])
        listed.append((int(number) - 1, len(images)))
        images.append(name)
    wanted = case["pascal_episodes"].tolist()
    drawn = hsnet_listed_episodes(pascal, listed, shots=shots, episodes=len(wanted))
    assert [_names(episode, pascal) for episode in drawn] == wanted
    lists = json.loads(str(case["coco_lists"]))
    coco = {int(number): lists[str(number)] for number in case["class_ids_coco"]}
    rows = case["coco_episodes"].tolist()
    drawn = hsnet_drawn_episodes(coco, shots=shots, episodes=len(rows))
    assert [_names(episode, coco) for episode in drawn] == rows
    report.errors |= {"pascal_episodes": 0.0, "coco_episodes": 0.0}


def _names(episode: Episode, index: dict[int, list[str]]) -> list[str]:
    """Query, class, supports, as the case lists them."""
    (number,), (support,), ((query,),) = episode.classes, episode.supports, episode.queries
    images = index[number]
    return [images[query], str(number), *(images[place] for place in support)]
