"""What the commands' options have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from fastfss import __version__
from fastfss.engines import ENCODER_BACKENDS, list_backends


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastfss {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]

# What model a command runs, and where.
BackboneOption = Annotated[
    str | None, typer.Option(help="The encoder; else the method's own, or first published one.")
]
LayersOption = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME", help="The encoder's layers to use; else the method's own."),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(metavar="FILE|imagenet", help="A checkpoint or an encoder's weights."),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="An option of the method, as in docs/methods.md; repeatable."
    ),
]
LongerSideOption = Annotated[
    int | None,
    typer.Option(min=1, help="Bring the longer side to this many pixels; else the method's."),
]
RefineOption = Annotated[
    bool | None, typer.Option("--refine/--no-refine", help="The method's refinement pass.")
]
EncoderBackendOption = Annotated[
    str, typer.Option(metavar="|".join(["auto", *ENCODER_BACKENDS]), help="What runs the encoder.")
]
BackendOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(["auto", *list_backends()]),
        help=f"What runs the engine; without one the encoder ({', '.join(ENCODER_BACKENDS)}).",
    ),
]
EngineOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Of fastfss export, in place of method, backbone, weights and size."
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Begin anew in a folder that holds results.")
]
ShorterSideOption = Annotated[
    int, typer.Option(min=32, help="Pixels of the shorter side as the model sees frames.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]


Choice = TypeVar("Choice", bound=str)


def one_of(flag: str, text: str, choices: Sequence[Choice]) -> Choice:
    """The choice that an option names.

    Raises:
        typer.BadParameter: none of them.

    Examples:
        >>> one_of("--crowds", "keep", ("keep", "skip"))
        'keep'
    """
    for choice in choices:
        if choice == text:
            return choice
    raise typer.BadParameter(f"{flag}: expected one of {', '.join(choices)}, got {text!r}")


def layer_names(layers: str | None) -> tuple[str, ...] | None:
    """What --layers names."""
    return None if layers is None else tuple(part.strip() for part in layers.split(","))


def program(version: VersionOption = False, debug: DebugOption = False) -> None:
    """Few-shot segmentation: a few annotated images in, masks of new images out."""


# Options that take any number of values, and how many belong together.
_MANY_VALUES = {
    **{"--query": 1, "--support": 2, "--support-folder": 1, "--task": 1},
    **{"--click": 1, "--scribble": 1, "--box": 1},
    **{"--calibrate": 1, "--check": 1, "--images": 1},
}
# Those whose values are coordinates, with a minus before those of the background. They stand for
# the mask of --support.
_MARKS = ("--click", "--scribble", "--box")


class ManyValuesCommand(TyperCommand):
    """A command whose list options take several values after one flag.

    ``--query *.jpg`` arrives as one flag with many values, because the shell expands it, and click
    only takes as many as the option declares.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flags, then parse as usual."""
        return super().parse_args(ctx, repeat_flags(args))


def repeat_flags(arguments: list[str]) -> list[str]:
    """Write ``--query a b`` as ``--query a --query b``.

    Args:
        arguments: the command's arguments.

    Returns:
        Arguments with the same meaning, each flag with one value.

    Raises:
        typer.BadParameter: a flag has fewer or more values than belong together.

    Examples:
        >>> repeat_flags(["--click", "30,20", "-5,5", "--overwrite"])
        ['--click=30,20', '--click=-5,5', '--overwrite']
        >>> repeat_flags(["--support", "1.jpg", "1.png", "--query", "2.jpg", "--overwrite"])
        ['--support', '1.jpg', '--support', '1.png', '--query', '2.jpg', '--overwrite']
    """
    repeated: list[str] = []
    maskless = (*_MARKS, "--label")
    marked = any(argument.partition("=")[0] in maskless for argument in arguments)
    rest = list(reversed(arguments))
    while rest:
        flag = rest.pop()
        together = _MANY_VALUES.get(flag, 0)
        values: list[str] = []
        while together and rest and _is_value(flag, rest[-1]):
            values.append(rest.pop())
        if not values:
            repeated.append(flag)
        elif len(values) % together and not (marked and flag == "--support"):
            raise typer.BadParameter(
                f"{flag}: expected an image and its mask, then the next image and mask, got "
                f"{' '.join(values)}"
            )
        for value in values:
            # Click takes "-5,5" after a flag for another flag.
            repeated += [f"{flag}={value}"] if flag in _MARKS else [flag, value]
    return repeated


def _is_value(flag: str, argument: str) -> bool:
    if flag in _MARKS and argument[:1] == "-":
        return argument[1:2].isdigit() or argument[1:2] == "."
    return not argument.startswith("-")
