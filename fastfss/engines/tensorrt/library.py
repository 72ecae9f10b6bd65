"""The two libraries of one interface: TensorRT, and TensorRT for RTX.

TensorRT builds a plan on the GPU that it is for. TensorRT for RTX builds one anywhere, for many
GPUs; the GPU that runs it compiles its kernels first, and keeps them in a cache.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, cast

from fastfss.errors import expected

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx_bindings as rtx

# Of plans that no compute capability was named for: "Ampere and later", NVIDIA says.
PORTABLE = "8.0 and later"
TURING = "7.5"


@dataclass(frozen=True)
class Context:
    """What runs an engine.

    Attributes:
        context: its memory is the caller's (USER_MANAGED). None where the library makes none.
        captures: whether it records its runs in CUDA graphs by itself.
        compiled: the kernels compiled so far, where the library compiles when it runs.
        refused: whether the kernels that it was given are of another GPU, driver or version.
    """

    context: trt.IExecutionContext | None
    captures: bool = False
    compiled: Callable[[], bytes] | None = None
    refused: bool = False


class Library:
    """TensorRT.

    Attributes:
        backend: of the engine; also the extra's name, and that of the folder of plans.
        title: for people.
        modules: names that its bindings have; the first that is there is taken.
        ahead: whether it builds without a GPU, for GPUs that are named, in seconds.
    """

    backend: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    modules: ClassVar[tuple[str, ...]] = ("tensorrt",)
    ahead: ClassVar[bool] = False

    def missing(self) -> str | None:
        """What is not installed, or None."""
        if self._module() is None:
            return f'{self.backend} is not installed: pip install "fastfss[{self.backend}]"'
        return None

    def bindings(self) -> ModuleType:
        """The module, loaded now."""
        return importlib.import_module(self._module() or self.modules[0])

    def version(self) -> str:
        """Of the library."""
        return str(self.bindings().__version__)

    def refuses(self, capability: str) -> str | None:
        """Why GPUs of a compute capability, such as "8.9", cannot be used; or None."""
        return None

    def keys(self, about: Mapping[str, str]) -> list[dict[str, str]]:
        """What a plan depends on besides graph and options, the best first.

        Args:
            about: the GPU; see `Device.about`.
        """
        return [{self.backend: self.version(), **about}]

    def target(self, config: trt.IBuilderConfig, capability: str) -> None:
        """Build for a compute capability.

        Raises:
            ValueError: none that the library builds for.
        """
        raise expected("capability", f"none: {self.title} builds for the GPU at hand", capability)

    def context(self, engine: trt.ICudaEngine, compiled: bytes, *, cuda_graphs: bool) -> Context:
        """Make what runs an engine.

        Args:
            engine: of a plan.
            compiled: kernels of an earlier run, or nothing.
            cuda_graphs: whether a library that captures by itself does.
        """
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = self.bindings()
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(engine.create_execution_context(strategy))

    def _module(self) -> str | None:
        return next((one for one in self.modules if importlib.util.find_spec(one)), None)


class LibraryForRTX(Library):
    """TensorRT for RTX: GeForce and RTX GPUs from Ampere on."""

    backend: ClassVar[str] = "tensorrt-rtx"
    title: ClassVar[str] = "TensorRT for RTX"
    # The second is that of the wheel in NVIDIA's SDK.
    modules: ClassVar[tuple[str, ...]] = ("tensorrt_rtx_bindings", "tensorrt_rtx")
    ahead: ClassVar[bool] = True

    def missing(self) -> str | None:
        """See Library.missing; also where one of the two wheels is there without the other."""
        if (reason := super().missing()) is not None:
            return reason
        try:
            self.bindings()
        except ImportError as error:
            return f'{self.backend} does not load ({error}): pip install "fastfss[{self.backend}]"'
        return None

    def capabilities(self) -> dict[str, rtx.ComputeCapability]:
        """Those that it builds our graphs for: of GPUs since Ampere."""
        if TYPE_CHECKING:
            import tensorrt_rtx_bindings as rtx
        else:
            rtx = self.bindings()
        members = rtx.ComputeCapability.__members__
        named = {f"{n[2:-1]}.{n[-1]}": one for n, one in members.items() if n.startswith("SM")}
        # It has no float32 matrix product there, and all match graphs are float32.
        return {name: one for name, one in named.items() if name != TURING}

    def refuses(self, capability: str) -> str | None:
        """See Library.refuses."""
        if capability == TURING:
            return f"{self.title} has no float32 matrix product for Turing"
        known = self.capabilities()
        if capability not in known:
            return (
                f"{self.title} {self.version()} runs on GPUs of compute capability "
                f"{', '.join(known)}, not {capability}"
            )
        return None

    def keys(self, about: Mapping[str, str]) -> list[dict[str, str]]:
        """See Library.keys: a plan for this GPU's capability, or one for all."""
        version = self.version()
        own = (about["capability"], PORTABLE)
        return [{self.backend: version, "capability": one} for one in own]

    def target(self, config: trt.IBuilderConfig, capability: str) -> None:
        """See Library.target."""
        if capability == PORTABLE:
            return
        self.check(capability)
        own = cast("rtx.IBuilderConfig", config)
        own.num_compute_capabilities = 1
        own.set_compute_capability(self.capabilities()[capability], 0)

    def check(self, capability: str) -> None:
        """Raise ValueError unless the library builds for a compute capability."""
        if capability not in self.capabilities():
            because = f": {self.refuses(capability)}" if capability == TURING else ""
            wanted = f"one of {', '.join(self.capabilities())}"
            raise expected("capability", wanted, f"{capability}{because}")

    def context(self, engine: trt.ICudaEngine, compiled: bytes, *, cuda_graphs: bool) -> Context:
        """See Library.context."""
        if TYPE_CHECKING:
            import tensorrt_rtx_bindings as rtx
        else:
            rtx = self.bindings()
        own = cast("rtx.ICudaEngine", engine)
        config = own.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        graphs = rtx.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if cuda_graphs else graphs.DISABLED
        cache = config.create_runtime_cache()
        refused = bool(compiled) and not cache.deserialize(compiled)
        config.set_runtime_cache(cache)
        context = own.create_execution_context(runtime_config=config)
        return Context(
            cast("trt.IExecutionContext | None", context),
            captures=True,
            compiled=lambda: bytes(cache.serialize()),
            refused=refused,
        )


TENSORRT, TENSORRT_RTX = Library(), LibraryForRTX()
