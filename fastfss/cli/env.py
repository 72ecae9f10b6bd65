"""`fastfss env`: what this machine and this installation offer."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fastfss.environment import environment


def env(
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """Print versions, CPU features, threads, and which backends are on, for a bug report."""
    found = environment()
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
