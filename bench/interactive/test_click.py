"""A click on an image of 480 x 360 px after the image is encoded, against a whole forward of it.

The click is the tenth, and ends at the Result: marks drawn, task made, features matched, labels and
scores at the image's size. The forward is what a session does at its first click. What is computed
depends on neither weights nor pixels, but for SSP, whose second pass reads the regions that the
first one is sure of.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from bench.compare import compare
from fastfss import Annotation, create_model
from fastfss.interactive import InteractiveSession
from fastfss.interactive.refinement import RefinementName

HEIGHT, WIDTH = 360, 480
CLICKS = 10
MOST_MS = 15.0
MOST_SHARE = 0.1

SMALL = {"encoder": "resnet18", "layers": ("layer2", "layer3")}
# (method, options, whether the bounds hold: a prototype or guided head alone)
CASES = {
    "mlc": ("mlc", {}, True),
    "mlc, resnet18": ("mlc", SMALL, True),
    "panet": ("panet", {}, True),
    "guided-late, lite": ("guided-late", {"encoder": "fcn_vgg16_lite"}, True),
    "guided-late": ("guided-late", {"encoder": "fcn_vgg16"}, True),
    "interactive-late": ("interactive-late", {"encoder": "fcn_vgg16"}, True),
    "ssp": ("ssp", {}, False),
    "ssp, resnet18": ("ssp", SMALL, False),
}


def annotations(count: int = 8) -> list[Annotation]:
    """Ten clicks each, in other places."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        said = Annotation()
        for number in range(CLICKS):
            x, y = torch.rand(2, generator=generator).tolist()
            said = said.point(x * WIDTH, y * HEIGHT, positive=number % 2 == 0)
        made.append(said)
    return made


@pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")
@pytest.mark.parametrize("refinement", ["none", "guided"])
@pytest.mark.parametrize("case", CASES)
def test_a_click(benchmark: Any, case: str, refinement: RefinementName) -> None:
    method, options, bounded = CASES[case]
    torch.manual_seed(0)
    model = create_model(method, size=WIDTH, **options).for_inference()
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    session = InteractiveSession(model, image, refinement=refinement)
    said = itertools.cycle(annotations())

    def click() -> object:
        return session.annotate(lambda _: next(said))

    def forward() -> object:
        fresh = InteractiveSession(model, image, refinement=refinement)
        return fresh.annotate(lambda _: next(said))

    measured = compare({"forward": forward, "click": click}, seconds=10, caches="warm")
    benchmark.pedantic(click, rounds=3)
    milliseconds = 1e3 * measured.median("click")
    ratio = measured.ratio("forward", "click")
    benchmark.extra_info.update(measured.as_dict(), ratio=round(ratio, 2))
    print(f"\n{case}, refinement {refinement}: {milliseconds:.1f} ms, 1/{ratio:.0f} of a forward")
    if bounded:
        assert milliseconds <= MOST_MS
        assert refinement != "none" or ratio >= 1 / MOST_SHARE
