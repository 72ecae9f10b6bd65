"""One voice for all errors: the argument, what was expected, what came."""

from __future__ import annotations

import importlib
from types import ModuleType


def expected(argument: str, wanted: str, came: str) -> ValueError:
    """A ValueError in the house's form: `features: expected (B, C, H, W), got (3, 4)`."""
    return ValueError(f"{argument}: expected {wanted}, got {came}")


def expected_kind(argument: str, wanted: str, came: str) -> TypeError:
    """A TypeError in the same form: `way: expected an integer, got 'cow'`."""
    return TypeError(f"{argument}: expected {wanted}, got {came}")


class CheckpointError(ValueError):
    """A weight file cannot be read, or does not fit the module it should fill."""


class MissingExtraError(ImportError):
    """A feature needs a package that only comes with one of fastfss's extras."""


def import_extra(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module that comes with an extra.

    Args:
        module: its dotted name, for example ``pycocotools.mask``.
        extra: the extra of fastfss that brings it.
        purpose: what needs it, as the beginning of a sentence.

    Returns:
        The module.

    Raises:
        MissingExtraError: the package is not installed; the message says how to install it.

    Examples:
        >>> import_extra("absent.part", extra="cli", purpose="Result.rle()")
        Traceback (most recent call last):
        fastfss.errors.MissingExtraError: Result.rle() needs absent: pip install "fastfss[cli]"
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Only the package itself may be missing; one that is there and broken keeps its error.
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f'{purpose} needs {package}: pip install "fastfss[{extra}]"'
        ) from None
