from __future__ import annotations

import pytest
import torch
from torch import nn

from fastfss.weights import CheckpointError, load_into


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def other_values(module: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else torch.tensor(5)
        for key, tensor in module.state_dict().items()
    }


def test_values_arrive_in_the_same_parameter_objects():
    module = network()
    before = dict(module.named_parameters())
    values = other_values(module)
    load_into(module, values)
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, values[key])
    assert all(parameter is before[key] for key, parameter in module.named_parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_half_precision_is_cast_to_the_module():
    module = network()
    values = {
        key: value.half() if value.is_floating_point() else value
        for key, value in other_values(module).items()
    }
    load_into(module, values)
    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight, values["0.weight"].float())


def test_num_batches_tracked_may_be_missing():
    module = network()
    values = other_values(module)
    del values["1.num_batches_tracked"]
    load_into(module, values)
    assert module[1].num_batches_tracked == 0
    assert torch.equal(module[1].running_var, values["1.running_var"])


def test_rename_and_ignore():
    module = network()
    values = other_values(module)
    published = {f"net.{key}": value for key, value in values.items()}
    published |= {"fc.weight": torch.ones(9), "fc.bias": torch.ones(9), "step": torch.tensor(1)}
    load_into(
        module,
        published,
        rename=lambda key: None if key == "step" else key.removeprefix("net."),
        ignore=["fc.*"],
    )
    assert torch.equal(module[2].weight, values["2.weight"])


def unchanged(module: nn.Module) -> bool:
    fresh = network().state_dict()
    return all(torch.equal(tensor, fresh[key]) for key, tensor in module.state_dict().items())


def test_everything_wrong_is_listed_and_nothing_is_changed():
    module = network()
    values = other_values(module)
    del values["0.bias"]
    values["extra.weight"] = torch.ones(1)
    values["1.weight"] = torch.ones(5)
    values["2.bias"] = torch.ones(2, dtype=torch.int64)
    with pytest.raises(CheckpointError) as caught:
        load_into(module, values, source="old.pth")
    assert str(caught.value) == (
        "old.pth does not fit Sequential: 1 missing: 0.bias; 1 unexpected: extra.weight; "
        "1 of the wrong shape: 1.weight: 5, expected 4; "
        "1 of the wrong type: 2.bias: torch.int64, expected torch.float32"
    )
    assert unchanged(module)


def test_long_lists_stop_after_eight():
    module = network()
    values = other_values(module) | {f"extra{n}": torch.ones(1) for n in range(11)}
    with pytest.raises(CheckpointError, match=r"11 unexpected: extra0, .*extra7, and 3 more$"):
        load_into(module, values)
    assert unchanged(module)


def test_two_entries_for_one_name_are_refused():
    module = network()
    values = other_values(module)
    values["copy/0.bias"] = torch.ones(4)
    with pytest.raises(CheckpointError, match=r"already taken: copy/0\.bias -> 0\.bias"):
        load_into(module, values, rename=lambda key: key.removeprefix("copy/"))
    assert unchanged(module)


def test_scalar_where_a_vector_is_expected_is_named():
    module = network()
    values = other_values(module) | {"2.bias": torch.tensor(1.0)}
    with pytest.raises(CheckpointError, match=r"2\.bias: a scalar, expected 2"):
        load_into(module, values)


def test_ignore_given_as_one_text_is_refused():
    with pytest.raises(TypeError, match="sequence of patterns"):
        load_into(network(), {}, ignore="fc.*")
