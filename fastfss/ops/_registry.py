"""How an operation becomes a torch operator with several backends.

An operation is registered once, by `register`: its schema, its plain PyTorch reference, its native
CPU function, its Triton kernels and a gradient. Whatever a backend cannot serve falls back to the
reference; `explain` tells what would happen and why, from the very checks that the dispatch uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastfss.errors import expected

Backend = Literal["auto", "native", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "native", "triton", "reference")

library = torch.library.Library("fastfss", "DEF")


@dataclass(frozen=True)
class Implementation:
    """One backend of an operation.

    Attributes:
        run: the operation.
        why_not: same arguments; the reason why `run` cannot serve them, or None.
    """

    run: Callable[..., Any]
    why_not: Callable[..., str | None]


@dataclass(frozen=True)
class Operation:
    """One torch operator and the backends behind it.

    At most one of `fast` serves a call: the native core takes tensors of the CPU, Triton's kernels
    those of a GPU (or, with TRITON_INTERPRET=1, of the CPU in the native core's place).
    """

    name: str
    reference: Callable[..., Any]
    fast: dict[str, Implementation]

    def __call__(self, backend: Backend, *args: Any) -> Any:
        """Run by the chosen backend; NotImplementedError names what a forced one lacks."""
        if backend == "auto":
            return getattr(torch.ops.fastfss, self.name).default(*args)
        if backend == "reference":
            return self.reference(*args)
        if backend not in self.fast:
            raise expected("backend", f"one of {', '.join(BACKENDS)}", repr(backend))
        if (reason := self.fast[backend].why_not(*args)) is not None:
            raise NotImplementedError(
                f"{self.name}: backend {backend!r} cannot serve this call: {reason}"
            )
        return getattr(torch.ops.fastfss, self.name).default(*args)

    def dispatch(self, *args: Any) -> Any:
        """Run by the backend that serves the call, else by the reference.

        Autocast ends here: inside, the reference would take sums in half precision that it means to
        take in float32, where 1 / 1e-5 is infinite.
        """
        first = args[0][0] if isinstance(args[0], list | tuple) else args[0]
        device = first.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._dispatch(*args)
        return self._dispatch(*args)

    def _dispatch(self, *args: Any) -> Any:
        for implementation in self.fast.values():
            if implementation.why_not(*args) is None:
                return implementation.run(*args)
        return self.reference(*args)


_operations: dict[str, Operation] = {}


def register(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    native: Callable[..., Any],
    why_not_native: Callable[..., str | None],
    triton: Callable[..., Any],
    why_not_triton: Callable[..., str | None],
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
        triton: the call into fastfss.kernels, same arguments.
        why_not_triton: same arguments; the reason why `triton` cannot serve them, or None.
        fake: shapes and dtypes only, for torch.compile.
        backward: torch.library's `backward(ctx, *grads)`; None for an operator without a gradient.
        setup_context: torch.library's `setup_context(ctx, inputs, output)`.
    """
    library.define(name + schema)
    fast = {
        "native": Implementation(native, why_not_native),
        "triton": Implementation(triton, why_not_triton),
    }
    operation = Operation(name, reference, fast)
    library.impl(name, operation.dispatch, "CPU")
    library.impl(name, operation.dispatch, "CUDA")
    library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastfss::{name}", fake, lib=library)
    if backward is not None:
        torch.library.register_autograd(
            f"fastfss::{name}", backward, setup_context=setup_context, lib=library
        )
    _operations[name] = operation
    return operation
