"""``fastfss models``: what methods there are, and what is known about each."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from fastfss.methods import NAMED_MODELS, MethodInfo, list_models, model_info


def models(
    method: Annotated[str | None, typer.Argument(help="Show this method alone, in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """List the methods: paper, backbones, supports, licence of the weights, parity, figures."""
    names = list_models() if method is None else [method]
    cards = {name: model_info(name) for name in names}
    if as_json:
        found = {name: dataclasses.asdict(card) for name, card in cards.items()}
        typer.echo(json.dumps(found, indent=2))
    elif method is not None:
        typer.echo(_card(method, cards[method]))
    else:
        typer.echo("\n\n".join(_summary(name, card) for name, card in cards.items()))
        ready = [
            f"{name}  ({one.method}, {one.encoder})\n  {one.about}"
            for name, one in NAMED_MODELS.items()
        ]
        typer.echo("\nWith weights:\n\n" + "\n\n".join(ready))
        typer.echo("\nfastfss models NAME adds the published figures.")


def _summary(name: str, card: MethodInfo) -> str:
    where = [card.venue, f"arXiv {card.arxiv}" if card.arxiv else ""]
    lines = [f"{name}  ({', '.join(filter(None, [card.title, *where]))})", f"  {card.paper}"]
    facts = {
        "backbones": ", ".join(card.encoders),
        "supports": ", ".join(card.supports),
        "licence of the authors' weights": card.weights_licence,
        "parity": card.parity,
    }
    return "\n".join([*lines, *(f"  {key}: {text}" for key, text in facts.items())])


def _card(name: str, card: MethodInfo) -> str:
    lines = [_summary(name, card), "  published by the authors, not measured here:"]
    if not card.scores:
        return "\n".join([*lines[:1], "  published figures: none that could be confirmed"])
    return "\n".join([*lines, *(f"    {score} [{score.source}]" for score in card.scores)])
