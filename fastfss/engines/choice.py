"""Which engine "auto" takes: the fastest of those that serve, measured once a machine."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from fastfss.atomic import write_text_atomically
from fastfss.engines.base import Engine
from fastfss.engines.loading import BACKENDS, backend_class, load_backend
from fastfss.engines.manifest import Manifest
from fastfss.engines.mixed import MixedEngine

TRIALS = "trials.json"
MOST_COST = 0.5  # points of mIoU that a precision may cost to be chosen without being named
_ROUNDS = 3
_WORTH_MIXING = 0.9
LIBRARIES = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx_cu13_bindings")


@dataclass
class Trial:
    """What was found of each backend: seconds of an encode and of a match, or why it has none."""

    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The fastest; two where each does one graph and that saves a tenth."""
        single = min(self.seconds, key=lambda name: sum(self.seconds[name]))
        encode = min(self.seconds, key=lambda name: self.seconds[name][0])
        match = min(self.seconds, key=lambda name: self.seconds[name][1])
        mixed = self.seconds[encode][0] + self.seconds[match][1]
        if encode != match and mixed < _WORTH_MIXING * sum(self.seconds[single]):
            return f"{encode}+{match}"
        return single

    def __str__(self) -> str:
        ranked = sorted(self.seconds.items(), key=lambda item: sum(item[1]))
        times = ", ".join(
            f"{name} {1e3 * encode:.4g} + {1e3 * match:.4g} ms" for name, (encode, match) in ranked
        )
        lines = [f"auto: {self.best} is the fastest here (encode + match: {times})"]
        return "; ".join([*lines, *(f"not {name}: {why}" for name, why in self.reasons.items())])


def choose(folder: Path, manifest: Manifest, device: torch.device) -> Engine:
    """Load the fastest engine; `engine.why` tells the times and why others are not taken.

    Args:
        folder: of the engine.
        manifest: its own.
        device: where it is to run.

    Raises:
        NotImplementedError: no backend serves the folder on the device.
    """
    key = _key(folder, manifest, device)
    remembered = _remembered(folder).get(key)
    engines: dict[str, Engine] = {}
    trial = remembered or _tried(folder, manifest, device, engines)
    if not trial.seconds:
        reasons = "; ".join(f"{name}: {why}" for name, why in trial.reasons.items())
        raise NotImplementedError(f"{folder}: no engine serves it on {device}: {reasons}")
    if remembered is None:
        _remember(folder, key, trial)
    engine = _best(trial.best, engines) or load_backend(trial.best, folder, manifest, device)
    engine.why = str(trial) + (" (measured earlier)" if remembered else "")
    return engine


def why_not_silently(manifest: Manifest) -> str | None:
    """The reason why a folder's precision is not taken unless it is asked for, or None."""
    if manifest.precision == "fp32":
        return None
    if manifest.cost is None:
        return (
            f"what {manifest.precision} costs is not known: export with --check, or name the "
            f"backend"
        )
    if manifest.cost.points > MOST_COST:
        return (
            f"{manifest.precision} costs {manifest.cost.points:.2f} points of mIoU, more than "
            f"{MOST_COST}; name the backend to take it all the same"
        )
    return None


def _tried(
    folder: Path, manifest: Manifest, device: torch.device, engines: dict[str, Engine]
) -> Trial:
    """Time every backend that serves; the fastest is left in `engines`."""
    trial = Trial()
    low = why_not_silently(manifest)
    for name in BACKENDS:
        kind = backend_class(name)
        reason = kind.why_not(manifest, device) or kind.slow_start(folder, manifest, device)
        # PyTorch's engines compute in float32 whatever the graphs do.
        if reason is None and name not in ("eager", "cuda-graph"):
            reason = low
        if reason is not None:
            trial.reasons[name] = reason
            continue
        try:
            engine = load_backend(name, folder, manifest, device)
            trial.seconds[name] = _seconds(engine)
        except (RuntimeError, ImportError, NotImplementedError) as error:
            # A broken installation of one library is no reason not to use another.
            trial.reasons[name] = f"it failed: {' '.join(str(error).split())[:200]}"
            continue
        engines[name] = engine
        for beaten in engines.keys() - set(trial.best.split("+")):
            del engines[beaten]
    return trial


def _best(name: str, engines: Mapping[str, Engine]) -> Engine | None:
    """The engine that the trial left, if it was made now."""
    found = [engines.get(one) for one in name.split("+")]
    if len(found) == 2 and found[0] is not None and found[1] is not None:
        return MixedEngine(found[0], found[1])
    return found[0]


def _seconds(engine: Engine) -> tuple[float, float]:
    """Of an encode and a match, the fastest of some: other programs only ever make one slower."""
    images = torch.rand(engine.example_shape(engine.manifest.encode.inputs[0]))
    tasks = engine.example_tasks()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + _ROUNDS):
        started = time.perf_counter()
        features = engine.encode(images)
        _wait(engine)
        encoded = time.perf_counter()
        engine.match(features, tasks)
        _wait(engine)
        times[0].append(encoded - started)
        times[1].append(time.perf_counter() - encoded)
    return min(times[0][1:]), min(times[1][1:])


def _wait(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)


# ---- What was measured earlier


def _key(folder: Path, manifest: Manifest, device: torch.device) -> str:
    """Everything that a time depends on, and which engines are ready."""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    libraries = installed(LIBRARIES)
    threads = f"{torch.get_num_threads()} threads"
    low = "" if why_not_silently(manifest) is None else "float32 alone"
    ready = [name for name in BACKENDS if _ready(name, folder, manifest, device)]
    return "; ".join([machine, threads, *libraries, manifest.digest[:16], *ready, low])


def _ready(name: str, folder: Path, manifest: Manifest, device: torch.device) -> bool:
    kind = backend_class(name)
    reason = kind.why_not(manifest, device) or kind.slow_start(folder, manifest, device)
    return reason is None


def installed(packages: Sequence[str]) -> list[str]:
    """Name and version of those that are installed."""
    found = []
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found


def cpu_name() -> str:
    """The model of the CPU and its number of threads."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} x {os.cpu_count()}"
    return f"{platform.processor() or platform.machine()} x {os.cpu_count()}"


def _remembered(folder: Path) -> dict[str, Trial]:
    """What trials.json holds; nothing where it is not there or cannot be read."""
    try:
        found = json.loads((folder / TRIALS).read_text(encoding="utf-8"))
        return {
            key: Trial(
                {name: (float(a), float(b)) for name, (a, b) in one["seconds"].items()},
                dict(one["reasons"]),
            )
            for key, one in found.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _remember(folder: Path, key: str, trial: Trial) -> None:
    every: Mapping[str, Trial] = {**_remembered(folder), key: trial}
    text = json.dumps(
        {k: {"seconds": t.seconds, "reasons": t.reasons} for k, t in every.items()}, indent=1
    )
    # A folder that may only be read is measured each time.
    with suppress(OSError):
        write_text_atomically(folder / TRIALS, text + "\n")
