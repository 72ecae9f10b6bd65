"""The plans of an engine folder: found, or built, on the GPU at hand or ahead for others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastfss.engines.manifest import EngineError, GraphSpec, Manifest
from fastfss.engines.tensorrt.builder import Ranges, build, output_ranges, refit
from fastfss.engines.tensorrt.library import PORTABLE, TENSORRT_RTX, Library
from fastfss.engines.tensorrt.messages import the_log
from fastfss.engines.tensorrt.options import BuildOptions, Report
from fastfss.engines.tensorrt.plans import Compiled, PlanStore, structure_digest

if TYPE_CHECKING:
    import tensorrt as trt

Key = dict[str, str]


@dataclass(frozen=True)
class Ahead:
    """A plan that was built for GPUs that are not here.

    Attributes:
        graph: "encode" or "match".
        capability: of the GPUs.
        path: the file.
        mib: its size.
        seconds: what it took.
    """

    graph: str
    capability: str
    path: Path
    mib: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.graph} for {self.capability}: {self.path.name}, {self.mib:.1f} MiB, built in "
            f"{self.seconds:.1f} s"
        )


class Plans:
    """An engine folder's plans by one library.

    Args:
        library: which.
        folder, manifest: the engine's.
        options: how to build.
        report: told of builds.
    """

    def __init__(
        self,
        library: Library,
        folder: Path,
        manifest: Manifest,
        options: BuildOptions,
        report: Report,
    ) -> None:
        self.library, self.folder, self.manifest = library, folder, manifest
        self.store = PlanStore(options.plans or folder / library.backend)
        self.notes: list[str] = []
        self._options, self._report = options, report
        if options.refittable and library.ahead:
            raise NotImplementedError(
                f"refittable: {library.title} builds in a second, and refits no plan"
            )

    def kept(self, about: Mapping[str, str]) -> bool:
        """Whether a GPU that is described so has all that it needs to load at once."""
        for spec in self._specs():
            path, _ = self._best(spec, about)
            compiled = self.compiled(path, about)
            if not path.is_file() or (self.library.ahead and not compiled.path.is_file()):
                return False
        return True

    def engine(
        self, runtime: trt.Runtime, spec: GraphSpec, about: Mapping[str, str]
    ) -> tuple[trt.ICudaEngine, Compiled]:
        """A graph's engine, of a plan that is kept or of one that is built now.

        Args:
            runtime: that loads it.
            spec: the graph.
            about: the GPU at hand; see `Device.about`.

        Returns:
            The engine, and where the kernels are that were compiled of it.

        Raises:
            EngineError: a graph that the library cannot parse or build, or a plan of its own that
                it does not load.
        """
        name, log = stem(spec), the_log(self.library)
        path, key = self._best(spec, about)
        compiled = self.compiled(path, about)
        with self.store.locked(path):
            if (found := self.store.read(path)) is not None:
                engine = runtime.deserialize_cuda_engine(found[0])
                if engine is not None:
                    self.notes.append(f"{name}: plan from {path.name}")
                    if found[1] != spec.sha256:
                        refit(self.library, engine, self.folder / spec.file)
                        self.notes.append(f"{name}: refitted to the weights of this export")
                    return engine, compiled
                self.notes.append(f"{name}: {path.name} does not load ({log.taken()})")
                self.store.remove(path)
            plan, seconds, kept = self._built(spec, path, key, about)
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                self.store.remove(path)
                raise EngineError(f"{spec.file}: its own plan does not load: {log.taken()}")
        where = f"kept as {path.name}" if kept else f"not kept: {self.store.folder} is read-only"
        self.notes.append(f"{name}: built in {seconds:.1f} s, {where}")
        return engine, compiled

    def ahead(self, capability: str) -> Iterator[Ahead]:
        """Build both graphs' plans for GPUs of a capability, whether or not they are there.

        Raises:
            EngineError: a graph that cannot be built.
            ValueError: a capability that the library does not build for.
            OSError: the folder cannot be written.
        """
        for spec in self._specs():
            key = self._key(spec, {self.library.backend: self.library.version()}, capability)
            path = self.store.path(stem(spec), key)
            with self.store.locked(path):
                plan, seconds, kept = self._built(spec, path, key, {})
            if not kept:
                raise OSError(f"{self.store.folder}: cannot be written")
            yield Ahead(stem(spec), capability, path, len(plan) / 2**20, seconds)

    def compiled(self, plan: Path, about: Mapping[str, str]) -> Compiled:
        """Where the kernels are that a GPU compiled of a plan."""
        return self.store.compiled(plan, about)

    def _built(
        self, spec: GraphSpec, path: Path, key: Key, about: Mapping[str, str]
    ) -> tuple[bytes, float, bool]:
        """A plan, the seconds that it took, and whether it is kept."""
        started = time.perf_counter()
        library, name = self.library, stem(spec)
        lasts = "a few seconds" if library.ahead else "from half a minute to several"
        self._report(f"{library.title} builds {spec.file}, which takes {lasts}")
        of_gpu = {library.backend: library.version(), **about}
        built = build(
            library,
            self.folder / spec.file,
            self._options,
            capability=key["capability"] if library.ahead else "",
            exact=self.manifest.precision == "fp32" or name == "match",
            ranges=self._ranges(spec),
            timings=b"" if library.ahead else self.store.read_timings(of_gpu),
            report=self._report,
        )
        if built.timings:
            self.store.write_timings(of_gpu, built.timings)
        kept = self.store.write(path, key, spec.sha256, built.plan)
        return built.plan, time.perf_counter() - started, kept

    def _best(self, spec: GraphSpec, about: Mapping[str, str]) -> tuple[Path, Key]:
        """The best plan that is there, or the one to build."""
        keys = [self._key(spec, own) for own in self.library.keys(about)]
        paths = [(self.store.path(stem(spec), key), key) for key in keys]
        return next((one for one in paths if one[0].is_file()), paths[-1])

    def _key(self, spec: GraphSpec, own: Mapping[str, str], capability: str = "") -> Key:
        """Everything that a plan depends on."""
        options = self._options
        graph = spec.sha256
        if options.refittable:
            graph = f"structure {structure_digest(self.folder / spec.file)}"
        return {
            **own,
            **({"capability": capability} if capability else {}),
            "graph": graph,
            "precision": self.manifest.precision,
            "level": str(options.level),
            "workspace": str(options.workspace_mib),
            "sizes": str(options.sizes) if self.manifest.dynamic else "",
        }

    def _ranges(self, spec: GraphSpec) -> dict[str, Ranges]:
        """Least, usual and largest shape of a graph's inputs with free sides."""
        manifest = self.manifest
        if not manifest.dynamic:
            return {}
        least, usual, largest = ((1, 3, *size) for size in self._options.sizes)
        if spec is manifest.encode:
            return {spec.inputs[0].name: (least, usual, largest)}
        # The sizes of maps follow from those of images.
        encode = self.folder / manifest.encode.file
        maps = output_ranges(self.library, encode, (least, usual, largest))
        return {one.name: maps[one.name] for one in spec.inputs if one.name in maps}

    def _specs(self) -> tuple[GraphSpec, GraphSpec]:
        return self.manifest.encode, self.manifest.match


def stem(spec: GraphSpec) -> str:
    """ "encode" or "match"."""
    return Path(spec.file).stem


def build_ahead(
    path: str | Path,
    *,
    capabilities: Sequence[str] = (),
    options: BuildOptions | None = None,
    report: Report | None = None,
) -> Iterator[Ahead]:
    """Build a folder's plans for TensorRT for RTX; no GPU is needed.

    Args:
        path: an engine folder.
        capabilities: of the GPUs that will run it, such as "8.9": a plan each. Without any there is
            one for all since Ampere, which GPUs without a plan of their own take.
        options: how; those of the engine that will load it.
        report: told of progress.

    Yields:
        Each plan when it is kept: it lies where `load(path, "tensorrt-rtx")` finds it.

    Raises:
        FileNotFoundError, EngineError: no engine folder there, or a graph that cannot be built.
        NotImplementedError: the library is not installed.
        ValueError: a capability that it does not build for; it names those that there are.
    """
    folder = Path(path)
    manifest = Manifest.read(folder)
    if (reason := TENSORRT_RTX.missing()) is not None:
        raise NotImplementedError(reason)
    told = report or (lambda _: None)
    plans = Plans(TENSORRT_RTX, folder, manifest, options or BuildOptions(), told)
    for capability in capabilities:
        TENSORRT_RTX.check(capability)
    for capability in capabilities or (PORTABLE,):
        yield from plans.ahead(capability)
