"""Which backend would serve a call, and why not the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastfss.errors import expected
from fastfss.ops._registry import Operation


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


INSTEAD = {
    "native": "the native core is faster",
    "cuda": "a kernel in CUDA C++ serves the call",
    "triton": "a Triton kernel serves the call",
}
NO_CUDA = "fastfss has no CUDA C++ kernel for this operation"


def choose(operation: Operation, *args: Any, note: str | None = None) -> Explanation:
    """The Explanation for the operator's arguments; `note` is of a call by a fast backend."""
    chosen = operation.choice(*args)
    reasons = {} if chosen == "reference" else {"reference": INSTEAD[chosen]}
    for name, one in operation.fast.items():
        if name != chosen:
            reasons[name] = one.why_not(*args) or INSTEAD[chosen]
    if "cuda" not in operation.fast:
        reasons["cuda"] = NO_CUDA
    return Explanation(operation.name, chosen, reasons, None if chosen == "reference" else note)
