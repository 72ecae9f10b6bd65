"""How an operation becomes a torch operator with several backends.

An operation is registered once, by `register`: its schema, its plain PyTorch reference, its native
CPU function, its Triton kernels and a gradient. Whatever a backend cannot serve falls back to the
reference; `explain` tells what would happen and why, from the very checks that the dispatch uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastfss.errors import expected

Backend = Literal["auto", "native", "cuda", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "native", "cuda", "triton", "reference")

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

    The first of `fast` that can serve a call does: the native core takes tensors of the CPU,
    kernels in CUDA C++ and in Triton those of a GPU (Triton's, with TRITON_INTERPRET=1, of the CPU
    in the native core's place). Where `triton_first` says so, Triton's come before all others.
    """

    name: str
    reference: Callable[..., Any]
    fast: dict[Backend, Implementation]
    triton_first: Callable[..., bool] = lambda *args: False

    def __call__(self, backend: Backend, *args: Any) -> Any:
        """Run by the chosen backend; NotImplementedError names what a forced one lacks."""
        if backend == "auto":
            if _only_references:
                return self.reference(*args)
            return getattr(torch.ops.fastfss, self.name).default(*args)
        if backend == "reference":
            return self.reference(*args)
        if backend not in BACKENDS:
            raise expected("backend", f"one of {', '.join(BACKENDS)}", repr(backend))
        if backend not in self.fast:
            raise NotImplementedError(f"{self.name}: there are no kernels of backend {backend!r}")
        if (reason := self.fast[backend].why_not(*args)) is not None:
            raise NotImplementedError(
                f"{self.name}: backend {backend!r} cannot serve this call: {reason}"
            )
        operator = getattr(torch.ops.fastfss, self.name).default
        if self.choice(*args) == backend:
            return operator(*args)
        token = _forced.set((self.name, backend))
        try:
            return operator(*args)
        finally:
            _forced.reset(token)

    def choice(self, *args: Any) -> Backend:
        """The backend that serves the call where none is forced."""
        names = list(self.fast)
        if self.triton_first(*args):
            names.sort(key=lambda name: name != "triton")
        for name in names:
            if self.fast[name].why_not(*args) is None:
                return name
        return "reference"

    def dispatch(self, *args: Any) -> Any:
        """Run by the forced backend, else by the one that serves the call.

        Autocast ends here: inside, the reference would take sums in half precision that it means to
        take in float32, where 1 / 1e-5 is infinite.
        """
        name, backend = _forced.get()
        if name != self.name:
            backend = self.choice(*args)
        run = self.reference if backend == "reference" else self.fast[backend].run
        first = args[0][0] if isinstance(args[0], list | tuple) else args[0]
        if torch.is_autocast_enabled(first.device.type):
            with torch.autocast(first.device.type, enabled=False):
                return run(*args)
        return run(*args)


_operations: dict[str, Operation] = {}

# Of the whole process, and no context variable, which torch.compile does not trace.
_only_references = False


@contextmanager
def references_only() -> Iterator[None]:
    """Within it, operations that may choose are their plain PyTorch references.

    For graphs that leave PyTorch: an exporter knows PyTorch's operators, not ours.
    """
    global _only_references
    before, _only_references = _only_references, True
    try:
        yield
    finally:
        _only_references = before


# An operation and the backend that a call of it must take instead of the first that could.
_forced: ContextVar[tuple[str, Backend]] = ContextVar("forced", default=("", "reference"))


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
    cuda: Callable[..., Any] | None = None,
    why_not_cuda: Callable[..., str | None] | None = None,
    triton_first: Callable[..., bool] = lambda *args: False,
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
        cuda: the call of the kernel in CUDA C++, same arguments; None where there is none.
        why_not_cuda: same arguments; the reason why `cuda` cannot serve them, or None.
        triton_first: same arguments; whether `triton` is faster than `cuda` for them.
        backward: torch.library's `backward(ctx, *grads)`; None for an operator without a gradient.
        setup_context: torch.library's `setup_context(ctx, inputs, output)`.
    """
    library.define(name + schema)
    fast: dict[Backend, Implementation] = {"native": Implementation(native, why_not_native)}
    if cuda is not None and why_not_cuda is not None:
        fast["cuda"] = Implementation(cuda, why_not_cuda)
    fast["triton"] = Implementation(triton, why_not_triton)
    operation = Operation(name, reference, fast, triton_first)
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
