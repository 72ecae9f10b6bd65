from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fastfss.video import Limits, LiveSource, read_stream
from fastfss.video.source import open_source
from fastfss.video.video_file import VideoFile
from tests.video.clips import clip


def write_video(path: Path, count: int = 30, *, height: int = 64, width: int = 96) -> None:
    """Frame n has the grey level 8 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": "7", "bf": "2"}
        for n in range(count):
            frame = av.VideoFrame.from_ndarray(
                np.full((height, width, 3), 8 * n, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def level(frame: torch.Tensor) -> int:
    return round(float(frame.float().mean()) / 8)


@pytest.mark.parametrize("order", ["forward", "backward", "jumps"])
def test_any_frame_of_a_video_comes_by_its_number(tmp_path: Path, order: str) -> None:
    write_video(tmp_path / "clip.mp4")
    source = VideoFile(tmp_path / "clip.mp4")
    assert (source.count, source.size, source.fps, source.name) == (30, (64, 96), 25.0, "clip")
    numbers = list(range(30))
    numbers = {
        "forward": numbers,
        "backward": numbers[::-1],
        "jumps": [29, 0, 15, 14, 28, 3, 3, 7, 6],
    }[order]
    # Without what is kept of frames that were decoded on the way.
    for number in numbers:
        source._kept.clear()
        frame = source.frame(number)
        assert (frame.dtype, tuple(frame.shape)) == (torch.uint8, (3, 64, 96))
        assert level(frame) == number
    source.close()


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"not a video at all" * 100)
    with pytest.raises(ValueError, match=r"source '.*no.mp4': expected a video"):
        open_source(tmp_path / "no.mp4")


def test_a_video_that_was_cut_off_gives_its_frames_or_an_error_that_names_it(
    tmp_path: Path,
) -> None:
    # A stream without an index at the end, as a camera writes it.
    write_video(tmp_path / "whole.ts")
    data = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[: len(data) // 2])
    try:
        source = VideoFile(tmp_path / "cut.ts")
        levels = [level(source.frame(n)) for n in range(source.count or 0)]
        assert levels == sorted(levels)
    except ValueError as error:
        assert "cut.ts" in str(error)


def test_streams_give_one_frame_after_another(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 5)
    assert [level(frame) for frame in read_stream(str(tmp_path / "clip.mp4"))] == list(range(5))


def test_what_is_too_large_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 5)
    with pytest.raises(ValueError, match=r"clip.mp4': expected frames of at most 1000 pixels"):
        open_source(tmp_path / "clip.mp4", Limits(pixels=1000))
    with pytest.raises(ValueError, match=r"clip.mp4': expected 1 to 3 frames, got"):
        open_source(tmp_path / "clip.mp4", Limits(frames=3))
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb.png"):
        open_source(tmp_path / "bomb.png")


def test_a_folder_is_sorted_by_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    assert [source.frame_name(n) for n in range(3)] == ["f1", "f2", "f10"]
    assert [int(source.frame(n)[0, 0, 0]) for n in range(3)] == [1, 2, 10]
    assert source.count == 3


def test_frames_of_another_size_are_refused_when_they_come(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "0.png")
    Image.new("RGB", (6, 5)).save(tmp_path / "1.png")
    source = open_source(tmp_path)
    with pytest.raises(ValueError, match="frame 1: expected 6 x 4 pixels as the first"):
        source.frame(1)


def test_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4"):
        open_source(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="expected a folder with images"):
        open_source(tmp_path)
    with pytest.raises(TypeError, match="source: expected a video file"):
        open_source(7)
    with pytest.raises(TypeError, match="source: expected a video file"):
        open_source([])


def test_a_live_source_keeps_the_last_frames_and_those_that_are_held() -> None:
    source = LiveSource(keep=2)
    frames, _ = clip(5)
    source.push(frames[0])
    source.hold({0})
    for frame in frames[1:]:
        source.push(frame)
    for number in (0, 3, 4):
        assert np.array_equal(source.frame(number).permute(1, 2, 0).numpy(), frames[number])
    with pytest.raises(ValueError, match=r"frame: expected one of those that are kept \(0, 3, 4\)"):
        source.frame(2)
    with pytest.raises(ValueError, match="image: expected 90 x 60 pixels"):
        source.push(frames[0][:-1])
