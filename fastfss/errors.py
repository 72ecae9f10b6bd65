"""One voice for all errors: the argument, what was expected, what came."""

from __future__ import annotations


def expected(argument: str, wanted: str, came: str) -> ValueError:
    """A ValueError in the house's form: `features: expected (B, C, H, W), got (3, 4)`."""
    return ValueError(f"{argument}: expected {wanted}, got {came}")
