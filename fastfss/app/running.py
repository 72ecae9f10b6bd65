"""Running the server."""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

import uvicorn

from fastfss.app.settings import Settings

_WAITING = 128  # connections that are not accepted yet


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free.

    Raises:
        OSError: it is taken, or not of this machine; it is named.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(_WAITING)  # so that who reads the address may connect at once
    except OSError as error:
        found.close()
        raise type(error)(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return found


def run(app: Any, bound: socket.socket, settings: Settings) -> None:
    """Serve until it is interrupted."""
    limits = settings.limits
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws_max_size=max(limits.message_bytes, limits.image_bytes),
        # A page that is asleep keeps its connection; one that is gone frees it.
        ws_ping_interval=20,
        ws_ping_timeout=60,
        timeout_graceful_shutdown=3,
        server_header=False,
    )
    # Uvicorn saves all, then raises the signal that ended it again: it must not end us at once.
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)
