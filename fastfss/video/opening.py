"""Opening a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastfss.engines import accelerate
from fastfss.methods import NAMED_MODELS, FewShotSegmenter, create_model
from fastfss.methods.named_models import DEFAULT, DEFAULT_VIDEO
from fastfss.video.limits import DEFAULT_LIMITS, Limits
from fastfss.video.session import VideoSession
from fastfss.video.source import open_source


def open(
    source: object,
    model: FewShotSegmenter | str | None = None,
    *,
    weights: str | Path | None = None,
    size: int | None = 480,
    limits: Limits = DEFAULT_LIMITS,
    workspace: str | Path | None = None,
    **options: Any,
) -> VideoSession:
    """Open a video for following objects in it.

    Args:
        source: a video file, a folder of images, an image in any form `fastfss.data.read_image`
            takes, a sequence of images, a `LiveSource` for frames that come one by one, or any
            other `FrameSource`.
        model: a method's name, or a model, which is used as it is; by default label propagation,
            without `weights` with the package's own.
        weights: as in `fastfss.create_model`; not with a model.
        size: pixels of the shorter side as the model sees frames; None keeps the model's own way.
        limits: of the video.
        workspace: a folder where `VideoSession.save` wrote a session of this video: it goes on.
            If there is none, it begins anew; `save` makes it.
        **options: those of `VideoSession`: memory, cache_bytes, refinement, click_refinement,
            click_model (by default, where nothing else is chosen either, the default model).

    Raises:
        FileNotFoundError: no such file or folder.
        TypeError, ValueError: no video, more than the limits allow, or a workspace of another one.
        MissingExtraError: a video file without PyAV.

    Examples:
        >>> import numpy, warnings, fastfss.video
        >>> frames = [numpy.full((64, 96, 3), 40, numpy.uint8) for _ in range(3)]
        >>> for t, frame in enumerate(frames):
        ...     frame[20:40, 20 + 4 * t : 50 + 4 * t] = 200
        >>> model = fastfss.create_model("propagation", encoder="resnet18", layers=("layer1",))
        >>> session = fastfss.video.open(frames, model, size=64)
        >>> cat = session.add_object("cat")
        >>> _ = session.add_mask(0, {cat: frames[0][..., 0] > 100})
        >>> [result.frame for result in session.propagate(0)]
        [1, 2]
    """
    opened = open_source(source, limits)
    if model is None and weights is None:
        options.setdefault("click_model", accelerate(create_model(DEFAULT).for_inference()))
    if model is None:
        model = DEFAULT_VIDEO if weights is None else NAMED_MODELS[DEFAULT_VIDEO].method
    if isinstance(model, str):
        model = accelerate(create_model(model, weights=weights).for_inference())
    session = VideoSession(opened, model, size=size, limits=limits, **options)
    if workspace is not None:
        from fastfss.video.workspace import load

        load(session, Path(workspace))
    return session
