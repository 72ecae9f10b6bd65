"""``fastfss serve``: the page for clicking in images and videos."""

from __future__ import annotations

import os
import secrets
import tempfile
import webbrowser
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastfss.atomic import check_writable
from fastfss.cli.making import (
    check_device,
    chosen_click_model,
    chosen_video_method,
    inference_model,
    made_model,
    method_options,
    prepare_encoder,
)
from fastfss.cli.options import (
    BackboneOption,
    DebugOption,
    DeviceOption,
    EncoderBackendOption,
    LayersOption,
    MethodOptions,
    ShorterSideOption,
    ThreadsOption,
    WeightsOption,
    layer_names,
)
from fastfss.errors import import_extra
from fastfss.methods import FewShotSegmenter


def serve(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[VIDEO ...]", help="Videos, images, folders that the page offers."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; others than this machine need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="FASTFSS_TOKEN",
            help="What clients must know; by default random where others may connect.",
        ),
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option(
            help="The folder of uploads and sessions, to go on with; else one that goes at the end."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="The segmentation method; else label propagation, without --backbone or --weights "
            "with the package's own.",
            show_default=False,
        ),
    ] = None,
    backbone: BackboneOption = None,
    layers: LayersOption = None,
    weights: WeightsOption = None,
    size: ShorterSideOption = 480,
    option: MethodOptions = None,
    backend: EncoderBackendOption = "auto",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    label_studio: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Be an ML backend of this Label Studio; LABEL_STUDIO_API_KEY fetches its images.",
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Serve a page for clicking in images and videos.

    Example: fastfss serve clip.mp4
    """
    for package in ("fastapi", "uvicorn", "websockets"):
        import_extra(package, extra="app", purpose="fastfss serve")
    from fastfss.app.hub import with_sources
    from fastfss.app.running import listen, run
    from fastfss.app.server import make_app
    from fastfss.app.settings import Settings, is_local

    check_device(device)
    options: dict[str, Any] = dict(method_options(option or [], None))
    if threads is not None:
        torch.set_num_threads(threads)

    chosen = method or chosen_video_method(backbone, weights)

    def make_model() -> FewShotSegmenter:
        model = made_model(chosen, backbone, layer_names(layers), weights, options)
        ready = inference_model(model, device, backend)
        prepare_encoder(ready)
        return ready

    def make_click_model() -> FewShotSegmenter | None:
        model = chosen_click_model(chosen, device, backend)
        if model is not None:
            prepare_encoder(model)
        return model

    with ExitStack() as stack:
        if workspace is None:
            prefix = "fastfss-serve-"
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
        else:
            folder = workspace
            folder.mkdir(parents=True, exist_ok=True)
            check_writable(folder, "--workspace")
        local = is_local(host)
        settings = Settings(
            folder.resolve(),
            token=token if local or token else secrets.token_urlsafe(18),
            hosts=("127.0.0.1", "localhost", "::1") if local else (),
            size=size,
            label_studio=None if label_studio is None else label_studio.rstrip("/"),
            label_studio_key=os.environ.get("LABEL_STUDIO_API_KEY"),
        )
        settings = with_sources(settings, sources or [])
        bound = stack.enter_context(listen(host, port))
        address = _address(host, bound.getsockname()[1], settings.token)
        typer.echo(f"serving {address}")
        if workspace is None:
            typer.echo("sessions go when it ends; --workspace FOLDER keeps them", err=True)
        if open_page:
            webbrowser.open(address)
        app = make_app(settings, make_model, make_click_model)
        run(app, bound, settings)


def _address(host: str, port: int, token: str | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + ("" if token is None else f"?token={token}")
