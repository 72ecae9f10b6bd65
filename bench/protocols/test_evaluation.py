"""What an evaluation costs beside the method: reading, resizing, counting.

pytest -s bench/protocols
"""

from __future__ import annotations

import time

import torch

from fastfss import create_model
from fastfss.protocols import draw_episodes, evaluate, get_protocol
from fastfss.protocols._counting import count_pairs
from fastfss.protocols.reading import Reader
from tests.protocols.blocks import Blocks

EPISODES = 4


def test_counting_and_resizing_are_small_beside_the_method() -> None:
    """SSP ResNet-50, 1-shot, by HSNet's protocol at 400 px and by PFENet's at 473, full size."""
    images = Blocks("pascal", 20, 60, size=(375, 500))
    for name, size in (("hsnet", 400), ("pfenet", 473)):
        protocol = get_protocol(name)
        model = create_model("ssp", size=size).eval()
        listed = draw_episodes(protocol, images, 0, episodes=EPISODES)
        found = evaluate(model, protocol, images, listed)
        reader = Reader(protocol, images, model)
        read = reader.read(listed.episodes[0])
        logits = torch.randn(1, 2, *read.query.shape[2:])
        times = []
        for _ in range(9):
            since = time.perf_counter()
            count_pairs(reader.labels(read, logits), read.truth, labels=2)
            times.append(time.perf_counter() - since)
        own = sorted(times)[4]
        method = found.method_seconds / len(listed.episodes)
        other = (found.seconds - found.method_seconds) / len(listed.episodes)
        print(
            f"\n{name}: method {1e3 * method:.0f} ms an episode, resize and counts "
            f"{1e3 * own:.1f} ms ({100 * own / method:.2f} %), all beside it {1e3 * other:.1f} ms"
        )
        assert own < 0.03 * method
