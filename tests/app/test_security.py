"""What the server refuses: other hosts and pages, no token, too much, broken files, noise."""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fastfss.app.settings import AppLimits, Settings
from fastfss.video.limits import Limits
from tests.app.client import SOCKET, TOKEN, clip_folder, opened, page, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("frames") / "clip")


@pytest.fixture
def client(tmp_path: Path, folder: Path) -> Iterator[TestClient]:
    limits = AppLimits(
        video=Limits(pixels=200_000, side=1000, frames=8),
        upload_bytes=60_000,
        image_bytes=50_000,
        message_bytes=50_000,
        files=10,
        waiting=16,
    )
    with serving(tmp_path / "work", sources={"clip": folder}, limits=limits) as found:
        yield found


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""]
)
def test_another_host_name_is_refused(client, host):
    answer = client.get("/api/sources", headers={"host": host})
    assert answer.status_code == 403 and "host" in answer.json()["message"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST:7860"])
def test_this_machine_is_served(client, host):
    assert client.get("/api/sources", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost", "http://localhost:7861", "file://"],
)
def test_another_origin_is_refused(client, origin):
    session = opened(client)
    answer = client.post("/api/uploads", headers={"origin": origin})
    assert answer.status_code == 403 and "origin" in answer.json()["message"]
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(
            f"{SOCKET}/api/sessions/{session}/live", headers={"origin": origin}
        ),
    ):
        pass


def test_own_origin_is_served(client):
    assert client.post("/api/uploads", headers={"origin": "http://localhost:7860"}).is_success


def test_without_the_token_nothing_is_served(tmp_path, folder):
    with serving(tmp_path, sources={"clip": folder}, hosts=(), token=TOKEN) as client:
        for path in ("/", "/static/app.js", "/api/sources", "/?token=wrong", "/api/sources?token="):
            answer = client.get(path)
            assert answer.status_code == 401 and TOKEN not in answer.text
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(f"{SOCKET}/api/sessions/abcdefgh/live"),
        ):
            pass
        bearer = {"authorization": f"Bearer {TOKEN}", "host": "studio.example"}
        assert client.get("/api/sources", headers=bearer).status_code == 200
        # The address that the program prints: the token becomes a cookie.
        answer = client.get("/", params={"token": TOKEN}, follow_redirects=False)
        assert answer.status_code == 303 and answer.headers["location"] == "/"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert client.get("/").status_code == 200
        with page(client, opened(client)) as one:
            assert one.ask("ping")["kind"] == "reply"


def test_any_host_needs_a_token(tmp_path):
    with pytest.raises(ValueError, match="token"):
        Settings(tmp_path, hosts=())
    with pytest.raises(ValueError, match="16 characters"):
        Settings(tmp_path, token="short")


def test_pages_load_nothing_from_elsewhere(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    static = Path(__file__).parents[2] / "fastfss" / "app" / "static"
    for path in static.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "http://" not in text and "https://" not in text, path
        assert client.get(f"/static/{path.name}").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/api/sessions/../../frames/0.jpg",
        "/api/sessions/..%2f..%2f/frames/0.jpg",
        "/api/sessions/%2e%2e%2f%2e%2e/frames/0.jpg",
        "/api/sessions/abcdefgh%00/frames/0.jpg",
        "/api/sessions/abcdefgh/images/..%2f..%2fsource.jpg",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_path_leads_out_of_the_workspace(client, path):
    answer = client.get(path)
    assert answer.status_code in (400, 404), answer.text
    assert "import" not in answer.text


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/x.png", "..\\x.png", "a\0b.png", "x.png" * 99]
)
def test_of_an_uploaded_name_only_the_suffix_counts(client, tmp_path, name):
    upload = client.post("/api/uploads").json()["id"]
    answer = client.put(f"/api/uploads/{upload}/0", params={"name": name}, content=b"x")
    assert answer.status_code == 200
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [Path("work", "sessions", upload, "source", "00000.png")]


@pytest.mark.parametrize(
    "name", ["x.py", "x.html", "x", "", ".png", "x.png.exe", "x.svg", "x.m3u8"]
)
def test_other_files_are_refused(client, name):
    upload = client.post("/api/uploads").json()["id"]
    answer = client.put(f"/api/uploads/{upload}/0", params={"name": name}, content=b"x")
    assert answer.status_code == 400 and "image or a video" in answer.json()["message"]


def test_large_uploads_are_refused_and_leave_nothing(client, tmp_path):
    upload = client.post("/api/uploads").json()["id"]
    for number, size, status in ((0, 50_000, 200), (1, 20_000, 413), (10, 1, 400), (-1, 1, 400)):
        path = f"/api/uploads/{upload}/{number}"
        answer = client.put(path, params={"name": "a.png"}, content=b"x" * size)
        assert answer.status_code == status
        assert status == 200 or "at most" in answer.json()["message"] or number == -1
    names = [path.name for path in (tmp_path / "work" / "sessions" / upload / "source").iterdir()]
    assert names == ["00000.png"]


def test_uploads_that_nobody_opened_go(client, tmp_path):
    upload = client.post("/api/uploads").json()["id"]
    folder = tmp_path / "work" / "sessions" / upload
    client.post("/api/uploads")
    assert folder.exists()
    os.utime(folder, (0, 0))
    client.post("/api/uploads")
    assert not folder.exists()


def test_a_full_workspace_takes_no_more(tmp_path):
    limits = AppLimits(upload_bytes=1000, workspace_bytes=500)
    with serving(tmp_path, limits=limits) as client:
        answer = client.post("/api/uploads")
        assert answer.status_code == 503 and "full" in answer.json()["message"]


def png_bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + code

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def small_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (9, 200, 9)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b""}, "frame 0"),
        ({"a.png": b"no image at all"}, "frame 0"),
        ({"a.jpg": small_png()[:60]}, "frame 0"),
        ({"a.png": png_bomb(60_000, 60_000)}, "pixels"),
        ({"a.png": png_bomb(2000, 10)}, "1000 a side"),
        ({"a.mp4": b"no video"}, "a.mp4|00000.mp4"),
        ({"a.mp4": small_png(), "b.png": small_png()}, "one video, or images"),
        ({f"{n}.png": small_png() for n in range(9)}, "1 to 8 frames"),
        ({}, "at least one file"),
    ],
    ids=["empty", "text", "cut", "bomb", "long", "video", "mixed", "many", "none"],
)
def test_broken_uploads_end_in_a_clear_message(client, files, message):
    upload = client.post("/api/uploads").json()["id"]
    for number, (name, data) in enumerate(files.items()):
        client.put(f"/api/uploads/{upload}/{number}", params={"name": name}, content=data)
    answer = client.post("/api/sessions", json={"kind": "upload", "id": upload})
    assert answer.status_code == 400
    assert re.search(message, answer.json()["message"]), answer.text
    workspace = client.app.state.hub.settings.workspace
    assert str(workspace) not in answer.text
    assert not (workspace / "sessions" / upload).exists()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"kind": "file", "path": "/etc/passwd"}',
        b'{"kind": "named", "name": "/etc/passwd"}',
        b'{"kind": "sample", "name": "../x"}',
        b'{"kind": "upload", "id": "../../etc"}',
        b'{"kind": "upload", "id": "abcdefghijkl"}',
        b'{"kind": "camera", "path": "x"}',
        b"[" * 3000,
        b"x" * 10_000,
    ],
)
def test_other_sources_are_refused(client, body):
    answer = client.post("/api/sessions", content=body)
    assert answer.status_code in (400, 404, 413) and answer.json()["message"]


def test_too_many_sessions_in_use_are_refused(tmp_path, folder):
    limits = AppLimits(sessions=1, clients=1)
    with serving(tmp_path, sources={"clip": folder}, limits=limits) as client:
        session = opened(client)
        with page(client, session):
            answer = client.post("/api/sessions", json={"kind": "named", "name": "clip"})
            assert answer.status_code == 503 and "in use" in answer.json()["message"]
            with client.websocket_connect(f"{SOCKET}/api/sessions/{session}/live") as second:
                assert "connected" in second.receive_json()["message"]


BAD_MESSAGES = [
    "",
    "{}",
    "[]",
    "null",
    "7",
    '"clicks"',
    "{" * 5000,
    '{"do": "clicks"}',
    '{"do": "nothing", "id": 1}',
    '{"do": "clicks", "frame": 0, "object": 1, "points": [[1, 2]], "more": 1}',
    '{"do": "clicks", "frame": 0, "object": 1, "points": []}',
    '{"do": "clicks", "frame": 0, "object": 1, "points": [[NaN, 2]]}',
    '{"do": "clicks", "frame": 0, "object": 1, "points": [[1e999, 2]]}',
    '{"do": "clicks", "frame": 1e30, "object": 1, "points": [[1, 2]]}',
    '{"do": "clicks", "frame": -1, "object": 1, "points": [[1, 2]]}',
    '{"do": "clicks", "frame": 0, "object": 300, "points": [[1, 2]]}',
    '{"do": "mask", "frame": 0, "object": 1, "runs": "$$$"}',
    '{"do": "mask", "frame": 0, "object": 1, "runs": "/////////////////w=="}',
    '{"do": "support.add", "session": "../../x", "shown": 1, "object": 1}',
    '{"do": "undo", "v": 2}',
    '{"do": "ack", "count": -5}',
    '{"do": "show", "frame": 99}',
    '{"do": "object.add", "name": ""}',
    '{"do": "object.rename", "object": 7, "name": "x"}',
    '{"do": "propagate", "frame": 0, "direction": "up"}',
    "\u0000\ud7ff",
]


def test_bad_messages_are_answered_by_an_error(client):
    with page(client, opened(client)) as one:
        for text in BAD_MESSAGES:
            one.socket.send_text(text)
            before = len(one.messages)
            assert one.ask("ping")["kind"] == "reply"
            errors = [m for m in one.messages[before:] if m["kind"] == "error"]
            assert len(errors) == 1 and errors[0]["message"], text


def test_error_of_a_bad_command_carries_its_id(client):
    with page(client, opened(client)) as one:
        reply = one.ask("clicks", frame="zero", object=1, points=[[1, 1]])
        assert reply["kind"] == "error" and "frame" in reply["message"]


def test_too_long_a_message_is_refused(client):
    with page(client, opened(client)) as one:
        one.socket.send_text('{"do": "' + "x" * 60_000 + '"}')
        assert "at most 50000 bytes" in one.until("error")["message"]
        one.socket.send_bytes(b"\2" * 60_000)
        assert "at most" in one.until("error")["message"]


def test_fuzzed_messages_never_end_the_session(client):
    """Random bytes, cut and changed commands, values of other kinds."""
    rng = random.Random(0)
    good = [
        {"do": "clicks", "frame": 0, "object": 1, "points": [[3, 4]], "positive": False},
        {"do": "box", "frame": 0, "object": 1, "box": [3, 4, 30, 40]},
        {"do": "scribble", "frame": 1, "object": 1, "path": [[3, 4], [9, 9]], "width": 3},
        {"do": "mask", "frame": 0, "object": 1, "runs": "AAEC"},
        {"do": "propagate", "frame": 0, "direction": "both"},
        {"do": "support.add", "session": "abcdefgh", "shown": 1, "object": 1},
        {"do": "show", "frame": 1},
        {"do": "undo"},
        {"do": "object.remove", "object": 1},
    ]
    odd = [None, True, -1, 0, 1, 2**31, 2**63, 1e308, "", "x" * 300, [], {}, [[]], [[1]], {"a": 1}]
    with page(client, opened(client)) as one:
        one.ask("object.add")
        for _ in range(300):
            kind = rng.randrange(4)
            command = dict(rng.choice(good), id=rng.randrange(10**6, 10**7))
            if kind == 0:
                one.socket.send_bytes(rng.randbytes(rng.randrange(40)))
            elif kind == 1:
                text = bytearray(json.dumps(command).encode())
                for _ in range(rng.randrange(1, 4)):
                    text[rng.randrange(len(text))] = rng.randrange(1, 128)
                one.socket.send_text(text.decode())
            elif kind == 2:
                text = json.dumps(command)
                one.socket.send_text(text[: rng.randrange(len(text))])
            else:
                command[rng.choice(list(command)[1:])] = rng.choice(odd)
                one.socket.send_text(json.dumps(command))
            if rng.random() < 0.2:
                assert one.ask("ping")["id"] == one.number
        while one.ask("ping")["kind"] == "error":  # until fewer wait
            pass
        assert not [m for m in one.messages if "internal error" in str(m.get("message"))]
