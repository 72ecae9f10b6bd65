"""What a page does with a session, over HTTP and its WebSocket."""

from __future__ import annotations

import base64
import io
import json
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fastfss.video.rle import encode_mask
from tests.app.client import SOCKET, Page, clip_folder, opened, page, serving
from tests.video.clips import clip, iou

FRAMES, MASKS = clip(4, 2)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    clip_folder(tmp_path / "clip")
    with serving(tmp_path / "work", sources={"clip": tmp_path / "clip"}) as found:
        yield found


def centre(frame: int, number: int) -> list[float]:
    y, x = np.nonzero(MASKS[frame] == number)
    return [float(x.mean()), float(y.mean())]


def runs_of(mask: np.ndarray) -> str:
    return base64.b64encode(encode_mask(mask)).decode()


def told(one: Page, kind: str, **wanted: object) -> dict[str, object]:
    """The next message of a kind that has these fields."""
    while True:
        found = one.until(kind)
        if found | wanted == found:
            return found


def test_click_gives_a_mask_and_undo_brings_the_old_one_back(client):
    with page(client, opened(client)) as one:
        number = one.ask("object.add", name="square")["object"]
        assert not one.labels(0).any()
        reply = one.ask("clicks", frame=0, object=number, points=[centre(0, 1)])
        assert reply["kind"] == "reply" and reply["prompts"][0]["kind"] == "point"
        first = one.labels(0)
        x, y = map(int, centre(0, 1))
        assert first[y, x] == number and not first.all()
        one.ask("clicks", frame=0, object=number, points=[[3, 3]], positive=False)
        second = one.labels(0)
        assert one.ask("undo")["kind"] == "reply"
        assert (one.labels(0) == first).all()
        one.ask("redo")
        assert (one.labels(0) == second).all()


def test_first_masks_come_before_the_reply_of_their_click(client):
    with page(client, opened(client)) as one:
        one.ask("object.add")
        one.ask("clicks", frame=1, object=1, points=[centre(1, 1)])
        assert one.masks[1].labels.any()
        assert one.masks[1].bytes < 2000


def test_mask_given_as_runs_is_taken_as_it_is(client):
    with page(client, opened(client)) as one:
        one.ask("object.add")
        reply = one.ask("mask", frame=2, object=1, runs=runs_of(MASKS[2] == 1))
        assert reply["kind"] == "reply", reply
        assert (one.labels(2) == (MASKS[2] == 1)).all()
        wrong = one.ask("mask", frame=2, object=1, runs=runs_of(np.ones((3, 3), bool)))
        assert wrong["kind"] == "error" and "runs" in wrong["message"]


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("box", {"box": [6.0, 6.0, 40.0, 40.0]}),
        ("scribble", {"path": [[12, 14], [20, 22]], "width": 3}),
        ("clear", {}),
    ],
)
def test_other_marks_are_answered(client, what, fields):
    with page(client, opened(client)) as one:
        one.ask("object.add")
        one.ask("clicks", frame=0, object=1, points=[centre(0, 1)])
        reply = one.ask(what, frame=0, object=1, **fields)
        assert reply["kind"] == "reply", reply
        assert one.labels(0).any() == (what != "clear")
        assert bool(reply["prompts"]) == (what != "clear")


def test_propagation_plays_to_the_end_and_the_state_shows_it(client):
    with page(client, opened(client)) as one:
        one.ask("object.add")
        one.ask("mask", frame=0, object=1, runs=runs_of(MASKS[0] == 1))
        assert one.ask("propagate", frame=0)["total"] == 3
        assert told(one, "progress", ended=True)["done"] == 3
        state = told(one, "state", busy=False)
        assert state["masked"] == [[0, 3]] and state["objects"][0]["visible"] == [[0, 3]]
        assert state["prompted"] == [[0, 1]]
        assert one.masks[3].flags == 1
        assert iou(one.labels(3), MASKS[3] == 1) > 0.4
        one.ask("undo")
        assert not one.labels(3).any() and one.labels(0).any()


def test_another_client_sees_changes_and_can_cancel(tmp_path):
    clip_folder(tmp_path / "clip", count=60)
    with serving(tmp_path / "work", sources={"clip": tmp_path / "clip"}) as client:
        session = opened(client)
        with page(client, session) as one, page(client, session) as two:
            one.ask("object.add")
            one.ask("mask", frame=0, object=1, runs=runs_of(MASKS[0] == 1))
            assert two.labels(0).any()
            one.ask("propagate", frame=0)
            assert two.ask("cancel")["kind"] == "reply"
            done = told(one, "progress", ended=True)["done"]
            assert done < 59
            assert two.ask("cancel")["done"] == 0


def test_a_change_ends_the_propagation(tmp_path):
    clip_folder(tmp_path / "clip", count=60)
    with (
        serving(tmp_path / "work", sources={"clip": tmp_path / "clip"}) as client,
        page(client, opened(client)) as one,
    ):
        one.ask("object.add")
        one.ask("mask", frame=0, object=1, runs=runs_of(MASKS[0] == 1))
        one.ask("propagate", frame=0)
        one.ask("clicks", frame=0, object=1, points=[[3, 3]], positive=False)
        assert told(one, "progress", ended=True)["done"] < 59


def test_reconnecting_shows_the_same(client):
    session = opened(client)
    with page(client, session) as one:
        one.ask("object.add", name="square")
        one.ask("clicks", frame=0, object=1, points=[centre(0, 1)])
        before, seq = one.labels(0), one.state["seq"]
    with page(client, session) as again:
        assert again.state["seq"] >= seq
        assert again.state["objects"][0]["name"] == "square"
        assert (again.labels(0) == before).all()
        assert again.ask("show", frame=0)["prompts"]


def test_session_goes_on_when_the_server_starts_again(tmp_path):
    clip_folder(tmp_path / "clip")
    sources = {"clip": tmp_path / "clip"}
    with serving(tmp_path / "work", sources=sources) as client:
        session = opened(client)
        with page(client, session) as one:
            one.ask("object.add")
            one.ask("clicks", frame=0, object=1, points=[centre(0, 1)])
            before = one.labels(0)
    with serving(tmp_path / "work", sources=sources) as client:
        assert client.get("/api/sources").json()["sessions"][0]["id"] == session
        with page(client, session) as one:
            assert (one.labels(0) == before).all()
            assert one.ask("undo")["kind"] == "reply"
        assert client.delete(f"/api/sessions/{session}").status_code == 200
        assert client.get(f"/api/sessions/{session}/frames/0.jpg").status_code == 404
        assert not client.get("/api/sources").json()["sessions"]


def test_sessions_in_which_nothing_was_said_are_not_kept(tmp_path):
    clip_folder(tmp_path / "clip")
    sources = {"clip": tmp_path / "clip"}
    with serving(tmp_path / "work", sources=sources) as client:
        opened(client)
        camera = opened(client, kind="camera")
        with page(client, camera) as one:
            one.ask("object.add")
        assert [one["id"] for one in client.get("/api/sources").json()["sessions"]] == [camera]
    assert not list((tmp_path / "work" / "sessions").iterdir())


def test_a_closed_session_takes_nobody_and_saves_what_it_can(client, monkeypatch, caplog):
    session = opened(client)
    worker = client.app.state.hub.get(session)
    with page(client, session) as one:
        one.ask("object.add")

    def full(_: object) -> None:
        raise OSError("no space left on the device")

    monkeypatch.setattr(worker.session, "save", full)
    worker.close()
    assert "could not be saved" in caplog.text
    with pytest.raises(ValueError, match="closed meanwhile"):
        worker.run(lambda one: one.seq).result(5)
    with (
        pytest.raises((ConnectionError, WebSocketDisconnect)),
        client.websocket_connect(f"{SOCKET}/api/sessions/{session}/live") as socket,
    ):
        socket.receive_json()


def test_export_of_what_changes_meanwhile_is_refused(client, monkeypatch):
    session = opened(client)
    worker = client.app.state.hub.get(session)
    with page(client, session) as one:
        one.ask("object.add")
        one.ask("mask", frame=1, object=1, runs=runs_of(MASKS[1] == 1))
        export = worker.session.export

        def slow(path, format):
            one.ask("undo")
            return export(path, format)

        monkeypatch.setattr(worker.session, "export", slow)
        answer = client.get(f"/api/sessions/{session}/export/davis")
        assert answer.status_code == 409 and "try again" in answer.json()["message"]


def test_least_recently_used_session_is_saved_and_comes_back(tmp_path):
    from fastfss.app.settings import AppLimits

    clip_folder(tmp_path / "clip")
    limits = AppLimits(sessions=2)
    with serving(tmp_path / "work", sources={"clip": tmp_path / "clip"}, limits=limits) as client:
        first = opened(client)
        with page(client, first) as one:
            one.ask("object.add", name="kept")
        opened(client)
        opened(client)
        with page(client, first) as one:
            assert one.state["objects"][0]["name"] == "kept"


def test_frames_are_jpegs_of_the_frame(client):
    session = opened(client)
    answer = client.get(f"/api/sessions/{session}/frames/2.jpg")
    found = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    assert found.shape == FRAMES[2].shape
    assert np.abs(found.astype(int) - FRAMES[2]).mean() < 12
    small = client.get(f"/api/sessions/{session}/frames/2.jpg?height=20")
    assert Image.open(io.BytesIO(small.content)).size == (30, 20)
    assert "immutable" in answer.headers["cache-control"]
    for bad in ("frames/4.jpg", "frames/-1.jpg", "frames/x.jpg", "frames/0.jpg?height=9"):
        answer = client.get(f"/api/sessions/{session}/{bad}")
        assert (
            answer.status_code in (400, 404, 422) and answer.headers["content-type"] != "image/jpeg"
        )


@pytest.mark.parametrize(
    "format", ["davis", "binary", "cutout", "coco", "ytvis", "cvat", "csv", "overlay"]
)
def test_exports_download(client, format):
    session = opened(client)
    assert client.get(f"/api/sessions/{session}/export/{format}").status_code == 400
    with page(client, session) as one:
        one.ask("object.add", name="square")
        one.ask("mask", frame=1, object=1, runs=runs_of(MASKS[1] == 1))
        answer = client.get(f"/api/sessions/{session}/export/{format}")
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]
    if format == "davis":
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.namelist() == ["1.png"]
            image = Image.open(io.BytesIO(archive.read("1.png")))
            assert (np.asarray(image) == (MASKS[1] == 1)).all()
    elif format in ("binary", "cutout"):
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.namelist() == ["1/1.png"]
    elif format in ("coco", "ytvis"):
        assert json.loads(answer.content)["annotations"]
    elif format == "cvat":
        assert b"<mask" in answer.content
    elif format == "csv":
        assert b"square" in answer.content
    else:
        assert answer.content[4:8] == b"ftyp"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def uploaded(client: TestClient, files: dict[str, bytes]) -> str:
    upload = client.post("/api/uploads").json()["id"]
    for number, (name, data) in enumerate(files.items()):
        answer = client.put(f"/api/uploads/{upload}/{number}", params={"name": name}, content=data)
        assert answer.status_code == 200, answer.text
    return opened(client, kind="upload", id=upload)


def test_uploaded_images_become_a_session(client):
    session = uploaded(client, {f"../{n}.PNG": png(FRAMES[n]) for n in range(3)})
    with page(client, session) as one:
        assert one.state["count"] == 3 and one.state["size"] == [60, 90]


def test_an_object_of_another_image_becomes_a_support(client):
    other = uploaded(client, {"photo.png": png(FRAMES[3])})
    session = opened(client)
    with page(client, session) as one, page(client, other) as two:
        two.ask("object.add")
        one.ask("object.add")
        fields = {"session": other, "shown": 1, "object": 1, "name": "photo"}
        assert one.ask("support.add", **fields)["kind"] == "error"  # no mask there yet
        two.ask("mask", frame=0, object=1, runs=runs_of(MASKS[3] == 1))
        reply = one.ask("support.add", **fields)
        assert reply["kind"] == "reply", reply
        support = told(one, "state")["supports"][0]
        assert support["name"] == "photo" and support["frame"] is None
        picture = client.get(f"/api/sessions/{session}/images/{support['image']}.jpg?height=30")
        assert Image.open(io.BytesIO(picture.content)).size == (45, 30)
        assert one.ask("propagate", frame=0)["total"] == 4
        told(one, "progress", ended=True)
        assert iou(one.labels(0), MASKS[0] == 1) > 0.3
        assert one.ask("support.forget", support=support["seq"])["kind"] == "reply"
        assert not told(one, "state", busy=False)["supports"]


def test_a_frame_is_kept_as_a_support(client):
    with page(client, opened(client)) as one:
        one.ask("object.add")
        assert one.ask("commit", frame=1)["kind"] == "error"
        one.ask("mask", frame=1, object=1, runs=runs_of(MASKS[1] == 1))
        assert one.ask("commit", frame=1)["kind"] == "reply"
        assert told(one, "state")["supports"][0]["frame"] == 1


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def test_webcam_frames_are_answered_and_a_click_is_followed(client):
    with page(client, opened(client, kind="camera")) as one:
        one.socket.send_bytes(struct.pack("<BI", 2, 7) + jpeg(FRAMES[0]))
        live = one.until("live")
        assert (live["number"], live["frame"]) == (7, 0)
        one.ask("object.add")
        one.ask("clicks", frame=0, object=1, points=[centre(0, 1)])
        one.socket.send_bytes(struct.pack("<BI", 2, 8) + jpeg(FRAMES[1]))
        assert one.until("live")["frame"] == 1
        x, y = map(int, centre(1, 1))
        assert one.masks[1].labels[y, x] == 1
        one.socket.send_bytes(struct.pack("<BI", 2, 9) + b"no image")
        assert "frame" in one.until("error")["message"]
        one.socket.send_bytes(struct.pack("<BI", 2, 10) + jpeg(FRAMES[0][:20]))
        assert "pixels" in one.until("error")["message"]
        assert one.ask("ping")["kind"] == "reply"


def test_idle_server_prepares_the_frame_that_is_shown(client):
    session = opened(client)
    worker = client.app.state.hub.get(session)
    with page(client, session) as one:
        one.ask("show", frame=3)
        end = time.monotonic() + 20
        while not worker.session.tracker.prepared(3) and time.monotonic() < end:
            time.sleep(0.02)
        assert worker.session.tracker.prepared(3)


@pytest.mark.parametrize("format", ["coco", "ytvis", "cvat", "davis"])
def test_exported_masks_come_back_in_another_session(client, format):
    with page(client, opened(client)) as one:
        for number in (1, 2):
            one.ask("object.add")
            one.ask("mask", frame=1, object=number, runs=runs_of(MASKS[1] == number))
        session = client.get("/api/sources").json()["sessions"][0]["id"]
        data = client.get(f"/api/sessions/{session}/export/{format}").content
    name = {"cvat": "a.xml", "davis": "a.PNG"}.get(format, "a.json")
    if format == "davis":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read("1.png")
    other = opened(client)
    with page(client, other) as one:
        path = f"/api/sessions/{other}/annotations"
        answer = client.put(path, params={"name": name, "frame": 1}, content=data)
        assert answer.json() == {"frames": [1]}, answer.text
        state = told(one, "state")
        assert len(state["objects"]) == 2 and state["prompted"] == [[1, 1], [1, 2]]
        assert (one.labels(1) == MASKS[1]).all()


@pytest.mark.parametrize("name", ["a.png", "a.json", "a.xml", "a.py", "../a", ""])
def test_broken_annotation_files_change_nothing(client, name):
    session = opened(client)
    path = f"/api/sessions/{session}/annotations"
    for data in (b"", b"{}", b"<annotations/>", b"\x89PNG", b"[" * 10_000):
        answer = client.put(path, params={"name": name}, content=data)
        assert answer.status_code == 400 and answer.json()["message"]
    with page(client, session) as one:
        assert not one.state["objects"] and not one.state["can_undo"]


def test_uploaded_video_becomes_a_session(client):
    session = opened(client)
    with page(client, session) as one:
        one.ask("object.add")
        for frame in range(4):
            one.ask("mask", frame=frame, object=1, runs=runs_of(MASKS[frame] == 1))
    video = client.get(f"/api/sessions/{session}/export/overlay").content
    other = uploaded(client, {"holiday.mp4": video})
    with page(client, other) as one:
        assert one.state["count"] == 4 and one.state["size"] == [60, 90]
        one.ask("object.add")
        one.ask("mask", frame=0, object=1, runs=runs_of(MASKS[0] == 1))
        one.ask("propagate", frame=0)
        assert told(one, "progress", ended=True)["done"] == 3
