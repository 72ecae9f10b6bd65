"""RegASPP as published: five maps of the full size, concatenated. Shared by DENet, CANet, PGNet."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfss.methods.aspp import RegASPP


def published_aspp(aspp: RegASPP, x: Tensor) -> Tensor:
    """The output (B, C, h, w) of the pyramid's own modules, without reuse."""
    branches = [branch(x) for branch in aspp.convs]
    branches[-1] = torch.nn.functional.interpolate(
        branches[-1], x.shape[-2:], mode="bilinear", align_corners=False
    )
    out: Tensor = aspp.project(torch.cat(branches, dim=1))
    return out
