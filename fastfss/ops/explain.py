"""Which backend would serve a call, and why not the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastfss.errors import expected


@dataclass(frozen=True)
class Explanation:
    """The answer of `explain`.

    Attributes:
        operation: the operation's name.
        backend: the backend that `backend="auto"` takes for this call.
        reasons: for every other backend, why it is not taken.
        note: what else the call will cost, for example a copy; or None.
    """

    operation: str
    backend: str
    reasons: dict[str, str]
    note: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.operation}: {self.backend}"]
        lines += [f"  note: {self.note}"] if self.note else []
        lines += [f"  not {name}: {reason}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


# Each operation's module adds its own: the public function's arguments -> an Explanation.
explainers: dict[str, Callable[..., Explanation]] = {}


def explain(operation: str, *args: Any, **kwargs: Any) -> Explanation:
    """Tell which backend would serve a call of `fastfss.ops.<operation>`, and why not the others.

    Nothing is computed; the arguments are checked as the operation itself would.

    Args:
        operation: the operation's name, for example "masked_average_pool".
        *args: the operation's own arguments.
        **kwargs: the operation's own keyword arguments.

    Returns:
        The Explanation; printing it gives one line a backend.

    Raises:
        ValueError: if there is no such operation, or as the operation itself would.
    """
    if operation not in explainers:
        raise expected("operation", f"one of {', '.join(sorted(explainers))}", repr(operation))
    return explainers[operation](*args, **kwargs)


def choose(operation: str, why_not_native: str | None, note: str | None = None) -> Explanation:
    """The Explanation that follows from the native core's answer; `note` is of the native call."""
    gpu = "fastfss has no GPU kernel for this operation yet"
    if why_not_native is None:
        return Explanation(
            operation,
            "native",
            {"reference": "the native core is faster", "triton": gpu, "cuda": gpu},
            note,
        )
    return Explanation(
        operation, "reference", {"native": why_not_native, "triton": gpu, "cuda": gpu}
    )
