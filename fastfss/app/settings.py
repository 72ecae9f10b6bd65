"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fastfss.errors import expected
from fastfss.video.limits import Limits

_MEBIBYTE = 1 << 20
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class AppLimits:
    """Bounds of what clients may ask for.

    Attributes:
        video: pixels, frames and objects of a session.
        upload_bytes: of one video, or of all images of one upload.
        image_bytes: of one image: of a support, or a frame of a webcam.
        files: of one upload.
        workspace_bytes: of all uploads together.
        sessions: open at the same time.
        clients: connected to one session.
        message_bytes: of one message of a WebSocket.
        waiting: commands of a client that are not answered yet.
    """

    video: Limits = field(default_factory=lambda: Limits(frames=20_000))
    upload_bytes: int = 1024 * _MEBIBYTE
    image_bytes: int = 32 * _MEBIBYTE
    files: int = 5000
    workspace_bytes: int = 16 * 1024 * _MEBIBYTE
    sessions: int = 8
    clients: int = 8
    message_bytes: int = 4 * _MEBIBYTE
    waiting: int = 64


@dataclass(frozen=True)
class Settings:
    """How a server runs.

    Attributes:
        workspace: the folder of uploads and sessions; nothing else is written, and nothing else
            read but `sources`.
        token: what clients must know; None where the machine itself is the only client.
        hosts: names that requests may come under; () for any, which needs a token.
        sources: name -> video file or folder that the page offers.
        size: pixels of the shorter side as the model sees frames.
        cache_bytes: of features, for each session.
        label_studio: the address of a Label Studio that may ask for masks; None for none.
        label_studio_key: what images are fetched from it with.
        limits: of what clients may ask for.
    """

    workspace: Path
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = _LOCAL
    sources: dict[str, Path] = field(default_factory=dict)
    size: int = 480
    cache_bytes: int = 512 * _MEBIBYTE
    label_studio: str | None = None
    label_studio_key: str | None = field(default=None, repr=False)
    limits: AppLimits = field(default_factory=AppLimits)

    def __post_init__(self) -> None:
        if not self.hosts and not self.token:
            raise expected("token", "one where any host may connect", "none")
        if self.token is not None and len(self.token) < 16:
            raise expected("token", "at least 16 characters", f"{len(self.token)}")
        if self.label_studio is not None:
            parts = urlsplit(self.label_studio)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise expected("label_studio", "http://HOST:PORT", repr(self.label_studio))


def is_local(host: str) -> bool:
    """Whether a host to bind to is this machine alone."""
    return host in _LOCAL
