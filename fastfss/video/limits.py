"""What a session refuses, so that a hostile or broken video ends in a message."""

from __future__ import annotations

from dataclasses import dataclass

from fastfss.errors import expected


@dataclass(frozen=True)
class Limits:
    """Bounds of a video.

    Attributes:
        pixels: of a frame.
        side: of its longer side.
        frames: of a video.
        objects: in a session; a palette PNG holds 254.
    """

    pixels: int = 4096 * 2304
    side: int = 8192
    frames: int = 200_000
    objects: int = 254

    def check_size(self, size: tuple[int, int], argument: str) -> None:
        """Raise ValueError, naming `argument`, for a frame (height, width) that is too large."""
        height, width = size
        if height < 1 or width < 1:
            raise expected(argument, "frames of at least 1 x 1 pixels", f"{width} x {height}")
        if height * width > self.pixels or max(height, width) > self.side:
            wanted = f"frames of at most {self.pixels} pixels and {self.side} a side"
            raise expected(argument, wanted, f"{width} x {height}")

    def check_frames(self, count: int, argument: str) -> None:
        """Raise ValueError, naming `argument`, for too many frames, or none."""
        if not 1 <= count <= self.frames:
            raise expected(argument, f"1 to {self.frames} frames", str(count))


DEFAULT_LIMITS = Limits()
