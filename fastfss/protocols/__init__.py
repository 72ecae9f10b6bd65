"""How published numbers are computed."""

from __future__ import annotations

from fastfss.protocols._counting import Meter
from fastfss.protocols.denet_metrics import DENetBinaryMeter, DENetFullMeter
from fastfss.protocols.episodes import Episode, denet_episodes, denet_images, panet_episodes
from fastfss.protocols.hsnet_episodes import hsnet_drawn_episodes, hsnet_listed_episodes
from fastfss.protocols.metrics import ConfusionMeter, FoldMeter, PANetMeter, PFENetMeter

__all__ = [
    "ConfusionMeter",
    "DENetBinaryMeter",
    "DENetFullMeter",
    "Episode",
    "FoldMeter",
    "Meter",
    "PANetMeter",
    "PFENetMeter",
    "denet_episodes",
    "denet_images",
    "hsnet_drawn_episodes",
    "hsnet_listed_episodes",
    "panet_episodes",
]
