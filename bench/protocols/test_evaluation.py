"""What an evaluation costs beside the method: reading, resizing, counting.

pytest -s bench/protocols
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.compare import compare
from fastfss import create_model
from fastfss.protocols import draw_episodes, evaluate, get_protocol
from fastfss.protocols._counting import count_pairs
from fastfss.protocols.reading import Reader
from tests.protocols.blocks import Blocks

EPISODES = 4


@pytest.mark.parametrize(("name", "size"), [("hsnet", 400), ("pfenet", 473)])
def test_resizing_and_counting(benchmark: Any, name: str, size: int) -> None:
    """SSP ResNet-50, 1-shot, by HSNet's protocol at 400 px and by PFENet's at 473, full size."""
    images = Blocks("pascal", 20, 60, size=(375, 500))
    protocol = get_protocol(name)
    model = create_model("ssp", size=size).eval()
    listed = draw_episodes(protocol, images, 0, episodes=EPISODES)
    found = evaluate(model, protocol, images, listed)
    reader = Reader(protocol, images, model)
    read = reader.read(listed.episodes[0])
    logits = torch.randn(1, 2, *read.query.shape[2:])

    def resize_and_count() -> None:
        count_pairs(reader.labels(read, logits), read.truth, labels=2)

    measured = compare({"resize and count": resize_and_count}, seconds=1, caches="warm")
    benchmark.pedantic(resize_and_count, rounds=3)
    method = found.method_seconds / len(listed.episodes)
    other = (found.seconds - found.method_seconds) / len(listed.episodes)
    own = measured.median("resize and count")
    figures = {"method_ms": method, "resize_and_count_ms": own, "all_beside_it_ms": other}
    benchmark.extra_info.update({key: round(1e3 * value, 2) for key, value in figures.items()})
    print(f"\n{name}, an episode: {benchmark.extra_info}")
    assert own < 0.03 * method
