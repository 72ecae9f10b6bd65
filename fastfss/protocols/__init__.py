"""How published numbers are computed."""

from __future__ import annotations

from fastfss.protocols._counting import Meter
from fastfss.protocols.denet_metrics import DENetBinaryMeter, DENetFullMeter
from fastfss.protocols.episode_lists import EpisodeList, ListedEpisode, draw_episodes
from fastfss.protocols.episodes import Episode, denet_episodes, denet_images, panet_episodes
from fastfss.protocols.evaluation import Evaluation, evaluate
from fastfss.protocols.folds import fold_classes
from fastfss.protocols.hsnet_episodes import (
    fss1000_episodes,
    hsnet_drawn_episodes,
    hsnet_listed_episodes,
)
from fastfss.protocols.leaks import LeakReport, check_leaks
from fastfss.protocols.metrics import ConfusionMeter, FoldMeter, PANetMeter, PFENetMeter
from fastfss.protocols.own_episodes import pfenet_episodes, ssp_episodes
from fastfss.protocols.protocol import PROTOCOLS, Protocol, get_protocol
from fastfss.protocols.scores import EpisodeCounts, Figures, figures_of

__all__ = [
    "PROTOCOLS",
    "ConfusionMeter",
    "DENetBinaryMeter",
    "DENetFullMeter",
    "Episode",
    "EpisodeCounts",
    "EpisodeList",
    "Evaluation",
    "Figures",
    "FoldMeter",
    "LeakReport",
    "ListedEpisode",
    "Meter",
    "PANetMeter",
    "PFENetMeter",
    "Protocol",
    "check_leaks",
    "denet_episodes",
    "denet_images",
    "draw_episodes",
    "evaluate",
    "figures_of",
    "fold_classes",
    "fss1000_episodes",
    "get_protocol",
    "hsnet_drawn_episodes",
    "hsnet_listed_episodes",
    "panet_episodes",
    "pfenet_episodes",
    "ssp_episodes",
]
