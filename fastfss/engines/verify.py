"""Every backend that serves a folder, against eager PyTorch in float32."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastfss.engines.base import LOGITS, Engine, model_of
from fastfss.engines.check import expected_outputs, label_iou, maps_error, outputs_error
from fastfss.engines.examples import Example, ExportSettings, example_of
from fastfss.engines.loading import BACKENDS, backend_class, load
from fastfss.engines.manifest import EngineError, Manifest, Precision
from fastfss.methods import FewShotSegmenter, create_model
from fastfss.methods.named_models import NAMED_MODELS

# What a float32 engine may differ by: relative to the largest logit, and in the mask's IoU.
MOST_ERROR, LEAST_IOU = 1e-4, 0.999
# Methods that every engine is to run, and the size of those that publish none.
METHODS = ("default", "ssp", "panet", "pfenet", "hsnet", "dcama", "guided-late")
_USUAL_SIZE = 473


@dataclass(frozen=True)
class Verification:
    """What was found of a backend.

    Attributes:
        backend: its name.
        reason: why it cannot serve the folder; None where it does, and only then the rest counts.
        encode, match: errors relative to eager float32: of the maps by norm, of the logits by the
            largest, the median over the examples (see `check.self_check`).
        iou: of the masks of all ways with eager's, the least of all examples.
        load_seconds, first_seconds, encode_ms, match_ms: see EngineStats.
        passed: whether an engine that computes in float32 is as exact as it has to be; of others
            whether their logits are numbers.
        error: why it failed, where it raised.
        notes: the engine's own.
    """

    backend: str
    reason: str | None = None
    encode: float = 0.0
    match: float = 0.0
    iou: float = 0.0
    load_seconds: float = 0.0
    first_seconds: float = 0.0
    encode_ms: float = 0.0
    match_ms: float = 0.0
    passed: bool = True
    error: str = ""
    notes: str = ""

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.backend}: not here: {self.reason}"
        if self.error:
            return f"{self.backend}: FAILED: {self.error}"
        told = f"\n  {self.notes}" if self.notes else ""
        return (
            f"{self.backend}: {'ok' if self.passed else 'FAILED'}, errors {self.encode:.1e} and "
            f"{self.match:.1e}, IoU {self.iou:.4f}; loaded in {self.load_seconds:.2f} s, first "
            f"{self.first_seconds:.2f} s, then encode {self.encode_ms:.1f} ms, match "
            f"{self.match_ms:.1f} ms{told}"
        )


def verify(
    path: str | Path,
    *,
    device: str = "cpu",
    backends: list[str] | None = None,
    examples: int = 3,
    rounds: int = 5,
) -> list[Verification]:
    """Run backends on made-up images and compare them with eager PyTorch.

    Args:
        path: an engine folder.
        device: "cpu" or "cuda".
        backends: which; by default all but torch-compile, which compiles for a minute or more.
        examples: support sets and images to compare.
        rounds: calls to time.

    Raises:
        FileNotFoundError, EngineError, ValueError: as `load`.
    """
    folder, where = Path(path), torch.device(device)
    manifest = Manifest.read(folder)
    settings = settings_of(manifest)
    model = model_of(folder, manifest)
    made = [example_of(model, settings, seed) for seed in range(examples)]
    found = []
    for backend in backends or [one for one in BACKENDS if one != "torch-compile"]:
        reasons = [backend_class(one).why_not(manifest, where) for one in backend.split("+", 1)]
        if any(reasons):
            found.append(Verification(backend, "; ".join(filter(None, reasons))))
            continue
        try:
            engine = load(folder, backend, device=device)
            with torch.no_grad():
                found.append(_verified(engine, model, made, rounds))
        except (EngineError, RuntimeError, ImportError) as error:
            # The others are told of all the same.
            text = " ".join(str(error).split())
            found.append(Verification(backend, passed=False, error=text))
    return found


def verify_method(
    method: str,
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    precision: Precision = "fp32",
    device: str = "cpu",
    backends: list[str] | None = None,
) -> list[Verification]:
    """Export a method with random weights, or the package's own, and run backends on it.

    Args:
        method: its name; its first published encoder is taken.
        folder: for the engine; it is left there.
        size: of the images; None takes the published one.
        precision: see `ExportSettings`; int8 has no images to take its ranges from here.
        device, backends: see `verify`.

    Raises:
        EngineError, NotImplementedError, ValueError: as `export_engine`.
    """
    from fastfss.engines.export import export_engine

    torch.manual_seed(0)
    model = create_model(method)
    side = usual_size(model)
    options = NAMED_MODELS[method].options if method in NAMED_MODELS else {}
    settings = ExportSettings(size or (side, side), precision=precision, options=options)
    export_engine(model, folder, settings, report=lambda _: None)
    return verify(folder, device=device, backends=backends)


def usual_size(model: FewShotSegmenter) -> int:
    """The side of a model's images: its own, the published one, or where there is none 473."""
    own = model.size if isinstance(model.size, int) else model.default_size
    return own or _USUAL_SIZE


def settings_of(manifest: Manifest) -> ExportSettings:
    """What a folder was exported with; of a free size 256 x 256."""
    height, width = (256 if isinstance(side, str) else side for side in manifest.image_size)
    return ExportSettings(
        (height, width),
        manifest.shots,
        manifest.ways,
        manifest.dynamic,
        manifest.precision,
        manifest.options,
    )


def _verified(
    engine: Engine, model: FewShotSegmenter, examples: Sequence[Example], rounds: int
) -> Verification:
    """An engine's errors and times on examples of eager PyTorch."""
    encode, errors = 0.0, []
    iou = 1.0
    finite = True
    for one in examples:
        size = one.features.size
        wanted = model.segment_from(one.features, one.tasks, size)
        exact = expected_outputs(model, one)
        features = engine.encode(one.images)
        maps = {name: tensor.float().cpu() for name, tensor in features.maps.items()}
        encode = max(encode, maps_error(maps, one.features.maps))
        outputs = {k: t.cpu() for k, t in engine.match_outputs(one.features, one.tasks).items()}
        errors.append(outputs_error(outputs, exact))
        found = engine.segment_from(features, one.tasks, size).labels.cpu()
        iou = min(iou, label_iou(found, wanted.labels))
        logits = outputs[LOGITS]
        finite = finite and bool(logits.isfinite().all() | (not exact[LOGITS].isfinite().all()))
    first = examples[0]
    for _ in range(rounds):
        engine.match(engine.encode(first.images), first.tasks)
    stats = engine.stats()
    match = statistics.median(errors)
    exact_enough = max(encode, match) <= MOST_ERROR and iou >= LEAST_IOU
    return Verification(
        engine.name,
        None,
        encode,
        match,
        iou,
        stats.load_seconds,
        stats.first_seconds or 0.0,
        stats.encode_ms or 0.0,
        stats.match_ms or 0.0,
        exact_enough if engine.exact else finite,
        notes=engine.notes,
    )
