"""The ML backend of Label Studio: what it is asked, and its brush."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from fastfss.app.label_studio import brush_runs, tags_of
from fastfss.app.settings import AppLimits, Settings
from tests.app.client import TOKEN, serving
from tests.video.clips import HEIGHT, WIDTH, clip

FRAME, MASK = clip(1)[0][0], clip(1)[1][0]
CONFIG = """
<View>
  <Image name="picture" value="$photo" zoom="true"/>
  <KeyPointLabels name="point" toName="picture"><Label value="cat" smart="true"/></KeyPointLabels>
  <RectangleLabels name="box" toName="picture"><Label value="cat" smart="true"/></RectangleLabels>
  <BrushLabels name="brush" toName="picture"><Label value="cat"/></BrushLabels>
</View>
"""


def decoded(runs: list[int]) -> np.ndarray:
    """What a brush's runs hold, by reading them bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in runs)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    found: list[int] = []
    while len(found) < total:
        repeated, count = read(1), read(sizes[read(2)]) + 1
        if repeated:
            found += [read(word)] * count
        else:
            found += [read(word) for _ in range(count)]
    return np.array(found, np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (130, 150)])
@pytest.mark.parametrize("kind", ["empty", "full", "random", "square"])
def test_brush_holds_the_mask_in_all_four_channels(shape, kind):
    mask = np.zeros(shape, bool)
    if kind == "random":
        mask = np.random.default_rng(0).random(shape) > 0.5
    elif kind != "empty":
        mask[: shape[0] if kind == "full" else 3] = True
    found = decoded(brush_runs(mask)).reshape(*shape, 4)
    assert (found == mask[..., None] * 255).all()


def test_tags_are_those_of_the_brush():
    found = tags_of(CONFIG)
    assert (found.brush, found.image, found.data) == ("brush", "picture", "photo")


class Studio(BaseHTTPRequestHandler):
    """Serves one image to who has the key, and a redirect."""

    def do_GET(self):
        if self.headers.get("Authorization") != "Token the key":
            self.send_error(401)
        elif self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/data/cat.png")
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture())
            type(self).served += 1

    served = 0

    def log_message(self, *_):
        pass


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(FRAME).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    Studio.served = 0
    server = HTTPServer(("127.0.0.1", 0), Studio)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    limits = AppLimits(image_bytes=60_000)
    options = {"label_studio": address, "label_studio_key": "the key", "limits": limits}
    try:
        with serving(tmp_path, **options) as found:
            yield found
    finally:
        server.shutdown()
        server.server_close()


def asked(marks: list[dict[str, Any]] | None, where: str = "/data/cat.png") -> dict[str, Any]:
    task = {"id": 1, "data": {"photo": where}, "annotations": [], "meta": {}}
    context = None if marks is None else {"result": marks, "draft_id": 0}
    params = {"login": None, "password": None, "context": context}
    return {"tasks": [task], "label_config": CONFIG, "project": "1.7", "params": params}


def point(y: float, x: float, positive: bool = True, label: str = "cat") -> dict[str, Any]:
    value = {"x": 100 * x / WIDTH, "y": 100 * y / HEIGHT, "width": 0.3, "keypointlabels": [label]}
    about = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"type": "keypointlabels", "value": value, "is_positive": positive, **about}


CENTRE = np.argwhere(MASK).mean(axis=0) + 0.5


def test_health_and_setup(client):
    assert client.get("/health").json()["status"] == "UP"
    assert client.post("/setup", json={"project": "1", "schema": CONFIG}).json()["model_version"]
    assert client.post("/webhook", json={"action": "x"}).json() == {}


def test_clicks_are_answered_by_a_brush(client):
    answer = client.post("/predict", json=asked([point(*CENTRE)]))
    assert answer.status_code == 200, answer.text
    found = answer.json()["results"][0]
    region = found["result"][0]
    assert (region["from_name"], region["to_name"], region["type"]) == (
        *("brush", "picture"),
        "brushlabels",
    )
    assert region["value"]["brushlabels"] == ["cat"] and region["value"]["format"] == "rle"
    assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
    mask = decoded(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 0] > 0
    y, x = map(int, CENTRE)
    assert mask[y, x] and not mask.all()
    v, u = np.argwhere(mask)[0].tolist()
    less = client.post("/predict", json=asked([point(*CENTRE), point(v + 0.5, u + 0.5, False)]))
    runs = less.json()["results"][0]["result"][0]["value"]["rle"]
    assert not decoded(runs).reshape(HEIGHT, WIDTH, 4)[v, u].any()
    # The same again is the same, and the image was fetched once.
    again = client.post("/predict", json=asked([point(*CENTRE)])).json()
    assert again["results"][0]["result"] == found["result"]
    assert Studio.served == 1


def test_boxes_and_images_in_the_task(client):
    top, left = np.argwhere(MASK).min(axis=0)
    bottom, right = np.argwhere(MASK).max(axis=0) + 1
    value = {"x": 100 * left / WIDTH, "y": 100 * top / HEIGHT, "rectanglelabels": ["dog"]}
    value |= {"width": 100 * (right - left) / WIDTH, "height": 100 * (bottom - top) / HEIGHT}
    inline = "data:image/png;base64," + base64.b64encode(picture()).decode()
    body = asked([{"type": "rectanglelabels", "value": value}], inline)
    region = client.post("/predict", json=body).json()["results"][0]["result"][0]
    mask = decoded(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 0] > 0
    assert mask.any() and not mask[: top - 3].any() and region["value"]["brushlabels"] == ["dog"]


def test_without_marks_there_is_nothing_to_say(client):
    for marks in (None, [], [point(3, 3, False)], [{"type": "textarea", "value": {}}]):
        answer = client.post("/predict", json=asked(marks))
        assert answer.status_code == 200 and answer.json()["results"][0]["result"] == []


@pytest.mark.parametrize(
    "where",
    [
        *("http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "//evil.example/x.png"),
        *("ftp://127.0.0.1/x", "/away", "data:image/png;base64,$$", "data:text/html,x"),
    ],
)
def test_images_come_from_label_studio_alone(client, where):
    answer = client.post("/predict", json=asked([point(9, 9)], where))
    assert answer.status_code == 400 and "image" in answer.json()["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"label_config": "<View/>"},
        {"label_config": "no XML"},
        {"label_config": "<!DOCTYPE a><View/>"},
        {"tasks": [{"data": {"photo": 7}}]},
        {"tasks": "all"},
        {"params": {"context": {"result": [{"type": "keypointlabels", "value": {"x": 1e9}}]}}},
    ],
)
def test_other_requests_are_refused(client, change):
    answer = client.post("/predict", json={**asked([point(9, 9)]), **change})
    assert answer.status_code == 400 and answer.json()["message"]
    assert client.post("/predict", content=b"[" * 9999).status_code == 400


def test_label_studio_sends_the_token_as_a_password(tmp_path):
    options = {"label_studio": "http://studio:8080", "hosts": (), "token": TOKEN}
    with serving(tmp_path, **options) as client:
        assert client.get("/health").status_code == 401
        assert client.get("/health", auth=("fastfss", TOKEN)).status_code == 200
        assert client.get("/health", auth=("fastfss", "another")).status_code == 401


def test_without_the_option_there_is_no_backend(tmp_path):
    with serving(tmp_path) as client:
        assert client.post("/predict", json=asked(None)).status_code in (404, 405)
    with pytest.raises(ValueError, match="label_studio"):
        Settings(tmp_path, label_studio="studio:8080")
    assert "secret" not in repr(Settings(tmp_path, label_studio_key="secret"))
