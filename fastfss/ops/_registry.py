"""How an operation becomes a torch operator with several backends.

An operation is registered once, by `register`: its schema, its plain PyTorch reference, its native
CPU function and a gradient. Whatever a backend cannot serve falls back to the reference; `explain`
tells what would happen and why, from the very checks that the dispatch uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastfss.errors import expected

Backend = Literal["auto", "native", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "native", "reference")

library = torch.library.Library("fastfss", "DEF")


@dataclass(frozen=True)
class Operation:
    """One torch operator and the backends behind it."""

    name: str
    reference: Callable[..., Any]
    native: Callable[..., Any]
    why_not_native: Callable[..., str | None]

    def __call__(self, backend: Backend, *args: Any) -> Any:
        """Run by the chosen backend; NotImplementedError names what a forced one lacks."""
        if backend == "auto":
            return getattr(torch.ops.fastfss, self.name).default(*args)
        if backend == "reference":
            return self.reference(*args)
        if backend != "native":
            raise expected("backend", f"one of {', '.join(BACKENDS)}", repr(backend))
        if (reason := self.why_not_native(*args)) is not None:
            raise NotImplementedError(
                f"{self.name}: backend 'native' cannot serve this call: {reason}"
            )
        return getattr(torch.ops.fastfss, self.name).default(*args)


_operations: dict[str, Operation] = {}


def register(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    native: Callable[..., Any],
    why_not_native: Callable[..., str | None],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Operation:
    """Define `fastfss::name` and return the callable behind the public function.

    Args:
        name: the operation's stem.
        schema: arguments and results in torch's schema language, `"(Tensor a, float b) -> Tensor"`.
        reference: the plain PyTorch twin, same arguments; serves every device and dtype.
        native: the call into fastfss._native, same arguments.
        why_not_native: same arguments; the reason why `native` cannot serve them, or None.
        fake: shapes and dtypes only, for torch.compile.
        backward: torch.library's `backward(ctx, *grads)`; None for an operator without a gradient.
        setup_context: torch.library's `setup_context(ctx, inputs, output)`.
    """
    library.define(name + schema)

    def cpu(*args: Any) -> Any:
        return native(*args) if why_not_native(*args) is None else reference(*args)

    library.impl(name, cpu, "CPU")
    library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastfss::{name}", fake, lib=library)
    if backward is not None:
        torch.library.register_autograd(
            f"fastfss::{name}", backward, setup_context=setup_context, lib=library
        )
    operation = Operation(name, reference, native, why_not_native)
    _operations[name] = operation
    return operation
