"""What tests over all methods pass to create_model."""

from __future__ import annotations

# IMR-HSNet takes an activation map of every query's label; those tests have masks and no labels.
OPTIONS: dict[str, dict[str, str]] = {"imr-hsnet": {"query_map": "uniform"}}
