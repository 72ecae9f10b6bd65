from __future__ import annotations

import pytest
import torch

from fastfss.weights import (
    ENCODER_KEYS,
    FLAT_STEM_KEYS,
    MLC_KEYS,
    SSP_KEYS,
    CheckpointError,
    convert_keys,
    deep_stem_keys,
)

LAYOUTS = {
    "encoder": ENCODER_KEYS,
    "flat": FLAT_STEM_KEYS,
    "ssp": SSP_KEYS,
    "mlc": MLC_KEYS,
}

# One entry of each row of the published layouts: ours, then encoder file, flat, SSP, MLC.
ROWS = [
    ("conv1.0.weight", "conv1.0.weight", "conv1.weight", "layer0.0.0.weight"),
    ("conv1.1.running_var", "conv1.1.running_var", "bn1.running_var", "layer0.0.1.running_var"),
    ("conv1.3.weight", "conv1.3.weight", "conv2.weight", "layer0.0.3.weight"),
    ("conv1.4.bias", "conv1.4.bias", "bn2.bias", "layer0.0.4.bias"),
    ("conv1.6.weight", "conv1.6.weight", "conv3.weight", "layer0.0.6.weight"),
    ("bn1.weight", "bn1.weight", "bn3.weight", "layer0.1.weight"),
    ("layer1.0.conv1.weight", *["layer1.0.conv1.weight"] * 3),
    ("layer3.22.bn3.bias", *["layer3.22.bn3.bias"] * 3),
    ("layer2.0.downsample.1.bias", *["layer2.0.downsample.1.bias"] * 3),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_published_names_and_ours_agree_in_both_directions(row):
    ours, *published = row
    for keys, theirs in zip(
        (ENCODER_KEYS, FLAT_STEM_KEYS, SSP_KEYS, MLC_KEYS),
        (*published, f"backbone.{ours}"),
        strict=True,
    ):
        assert keys.to_ours(theirs) == f"encoder.{ours}"
        assert keys.to_published(f"encoder.{ours}") == theirs
        assert keys.covers(theirs)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_conversion_between_any_two_layouts_keeps_order_and_tensors(source, target):
    ours = {f"encoder.{row[0]}": torch.tensor(float(n)) for n, row in enumerate(ROWS)}
    theirs = {LAYOUTS[source].to_published(key): value for key, value in ours.items()}
    found = convert_keys(theirs, LAYOUTS[source], LAYOUTS[target])
    assert list(found) == [LAYOUTS[target].to_published(key) for key in ours]
    assert all(a is b for a, b in zip(found.values(), ours.values(), strict=True))
    assert deep_stem_keys(found) == LAYOUTS[target]


def test_conversion_names_keys_of_another_layout():
    tensors = {"layer1.0.conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 keys are not of the SSP layout: fc\.weight"):
        convert_keys(tensors, SSP_KEYS, MLC_KEYS)


def test_unknown_key_stays_so_that_loading_can_report_it():
    assert SSP_KEYS.to_ours("layer4.0.conv1.weight") == "layer4.0.conv1.weight"
    assert MLC_KEYS.to_ours("decoder.weight") == "decoder.weight"
