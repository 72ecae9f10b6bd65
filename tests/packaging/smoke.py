"""Run by a freshly installed fastfss: `python smoke.py native|reference`, prints what it did.

The argument is the backend that must serve the operations on this machine.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fastfss
from fastfss import ops
from fastfss.environment import environment
from fastfss.training import list_recipes, load_recipe


def operations() -> dict[str, Callable[[str], Tensor | tuple[Tensor, ...]]]:
    """Every public operation on small inputs, as a function of the backend."""
    torch.manual_seed(0)
    features, others = torch.randn(2, 1, 8, 6, 7).unbind()
    prototypes = torch.randn(2, 8)
    value = torch.rand(1, 1, 6, 7)
    masks = torch.rand(1, 2, 24, 28)
    pairs, weight, bias = torch.randn(1, 2, 3, 3, 4, 4), torch.randn(4, 2, 3, 3), torch.randn(4)
    pivots = pairs, weight, bias, weight, bias
    return {
        "masked_average_pool": lambda b: ops.masked_average_pool(features, masks, backend=b),
        "prototype_match": lambda b: ops.prototype_match(features, prototypes, backend=b),
        "dense_match": lambda b: ops.dense_match(features, others, value, backend=b),
        "dense_match_sums": lambda b: ops.dense_match_sums(
            features, others, value, value[:, 0], backend=b
        ),
        "center_pivot_block": lambda b: ops.center_pivot_block(
            *pivots, bias, bias, groups=2, backend=b
        ),
        "center_pivot_conv4d": lambda b: ops.center_pivot_conv4d(*pivots, backend=b),
        "dense_correlation": lambda b: ops.dense_correlation([features], [others], backend=b),
    }


def check_operations(wanted: str) -> None:
    """Each operation by each backend: equal, or refused with a reason."""
    public = set(ops.__all__) - {"Explanation", "explain"}
    calls = operations()
    assert set(calls) == public, set(calls) ^ public
    for name, call in calls.items():
        reference = call("reference")
        torch.testing.assert_close(call("auto"), reference, rtol=1e-4, atol=1e-5)
        if wanted == "native":
            torch.testing.assert_close(call("native"), reference, rtol=1e-4, atol=1e-5)
            continue
        try:
            call("native")
        except NotImplementedError as error:
            assert "FASTFSS_BUILD=python" in str(error), error
        else:
            raise AssertionError(f"{name}: ran natively without native code")
    print(f"operations: {', '.join(calls)}")


def check_kernels() -> None:
    """The Triton kernels are part of the package, and each loads."""
    folder = Path(fastfss.__file__).parent / "kernels"
    stems = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    operations_with_files = set(operations()) - {"dense_match_sums", "center_pivot_block"}
    assert operations_with_files <= stems, operations_with_files - stems
    if importlib.util.find_spec("triton") is not None:
        for stem in stems:
            importlib.import_module(f"fastfss.kernels.{stem}")
    print(f"kernels: {len(stems)} files")


def check_predict() -> None:
    """Five lines of Python: a square in one image, the same square in another."""
    support, query = torch.zeros(2, 3, 96, 96)
    support[0, 16:64, 16:64] = 1
    query[0, 40:88, 24:72] = 1
    mask = support[0] > 0

    torch.manual_seed(0)
    model = fastfss.create_model("ssp", encoder="resnet18", layers=("layer2", "layer3"))
    task = model.fit([(support, mask)], name="square")
    result = model.predict(query, task)
    assert result.labels.shape == (96, 96)
    assert result.names == ("square",)
    print(f"predict: {int(result.mask().sum())} pixels")


def check_recipes() -> None:
    """The recipes are part of the package, and each can be read."""
    recipes = [load_recipe(name) for name in list_recipes()]
    assert {recipe.model.method for recipe in recipes} >= {"ssp", "hsnet", "panet"}
    print(f"recipes: {len(recipes)}")


def main(wanted: str) -> None:
    """Import, look at the environment, run every operation and a prediction."""
    location = Path(fastfss.__file__)
    assert location.is_relative_to(sys.prefix), f"{location} is not of this environment"
    assert (location.parent / "py.typed").exists()

    found = environment()
    assert found.installed == "wheel", found.installed
    backends = {backend.name: backend for backend in found.backends}
    assert backends["native"].on == (wanted == "native"), backends["native"]
    print(f"fastfss {found.fastfss}, native: {backends['native'].detail}")
    check_operations(wanted)
    check_kernels()
    check_predict()
    check_recipes()


if __name__ == "__main__":
    main(sys.argv[1])
