"""IMR-HSNet the way its code computes it: masked copies of the maps, correlations anew in every
stage and direction, full convolutions in every gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.methods import IMRHSNet
from tests.methods.published_hsnet import published_encoder
from tests.published import hsnet_correlation

Maps = dict[str, Tensor]


def published_masked(maps: Maps, activation: Tensor) -> Maps:
    return {name: one * _enlarged(activation, one.shape[2:]) for name, one in maps.items()}


def published_correlations(model: IMRHSNet, query: Maps, support: Maps) -> list[Tensor]:
    return [
        hsnet_correlation([query[n].clone() for n in level], [support[n].clone() for n in level])
        for level in model.levels
    ]


def published_middle(model: IMRHSNet, maps: Maps, size: Sequence[int]) -> Tensor:
    names = model.levels[1]
    summed = maps[names[0]].clone()
    for name in names[1:]:
        summed = summed + maps[name]
    enlarged = _enlarged(summed, size)
    return model.conv1024_512(enlarged) if hasattr(model, "conv1024_512") else enlarged


def published_unit(
    model: IMRHSNet, activation: Tensor, encoded: Tensor, middle: Tensor, state: Tensor
) -> Tensor:
    """The next state."""

    def gate(name: str, inputs: Tensor) -> Tensor:
        mixed = model.get_submodule(f"conv{name}0")(inputs)
        first = model.get_submodule(f"conv{name}1")(mixed[:, :256])
        second = model.get_submodule(f"conv{name}2")(mixed[:, 256:])
        return torch.cat([first, second], dim=1)

    inputs = torch.cat([activation, encoded, middle, state], dim=1)
    z = torch.sigmoid(gate("z", inputs))
    r = torch.sigmoid(gate("r", inputs))
    candidate = torch.tanh(gate("h", torch.cat([activation, encoded, middle, r * state], dim=1)))
    return (1 - z) * state + z * candidate


def published_stages(
    model: IMRHSNet, query: Maps, support: Maps, query_map: Tensor, support_map: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Of each stage the logits (B, 2, 2h, 2w) of the query and of the support.

    The maps are the encoder's; activations are (B, h, w) at the finest grid.
    """
    activations = [query_map.unsqueeze(1), support_map.unsqueeze(1)]
    size = activations[0].shape[2:]
    middles = [published_middle(model, maps, size) for maps in (query, support)]
    sides = [published_masked(query, activations[1]), published_masked(support, activations[0])]
    state = F.interpolate(model.state, size, mode="bilinear", align_corners=True)
    states = [state.expand(len(query_map), -1, -1, -1) for _ in sides]
    stages = []
    for stage in range(model.stages):
        if stage:
            found = [one.softmax(dim=1)[:, 1:] for one in stages[-1]]
            sides = [published_masked(*pair) for pair in zip(sides, found, strict=True)]
            activations = [_enlarged(one, size) for one in found]
        logits = []
        for own, other in ((0, 1), (1, 0)):
            levels = published_correlations(model, sides[own], sides[other])
            encoded = published_encoder(model.hpn_learner, levels)
            states[own] = published_unit(
                model, activations[own], encoded, middles[own], states[own]
            )
            decoded = model.decoder1(states[own] + encoded)
            twice = (2 * size[0], 2 * size[1])
            decoded = model.decoder2(_enlarged(decoded, twice))
            logits.append(model.res(torch.cat([decoded, _enlarged(activations[own], twice)], 1)))
        stages.append((logits[0], logits[1]))
    return stages


@torch.no_grad()
def published_predict(
    model: IMRHSNet,
    images: Sequence[Tensor],
    support_maps: Sequence[Tensor],
    query: Tensor,
    query_map: Tensor,
) -> tuple[Tensor, Tensor]:
    """The last shot's logits (B, 2, H, W) and the labels (B, H, W) of all shots' votes.

    Each shot on its own, query and support encoded for each; activations (B, h, w) at the finest
    grid.
    """
    votes = torch.zeros(query.shape[0], *query.shape[2:])
    for image, support_map in zip(images, support_maps, strict=True):
        maps = model.encoder(query), model.encoder(image)
        stages = published_stages(model, *maps, query_map, support_map)
        logits = _enlarged(stages[-1][0], query.shape[2:])
        votes += logits.argmax(dim=1)
    if len(images) == 1:
        return logits, votes.long()
    most = votes.flatten(1).amax(dim=1).clamp_min(1).view(-1, 1, 1)
    return logits, (votes / most >= 0.5).long()


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)
