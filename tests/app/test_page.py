"""The page in a real browser, against the real program with the package's own weights."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.app.browser import chromium, served

pytestmark = pytest.mark.slow
_SECONDS = 90  # of patience: the machine may have other work


class Browser:
    """What a person does with the page, and what they see."""

    def __init__(self, driver: Any, address: str, downloads: Path) -> None:
        self.driver = driver
        self.address = address
        self.downloads = downloads

    def js(self, code: str, *values: Any) -> Any:
        return self.driver.execute_script(f"return {code}", *values)

    def until(self, what: str | Callable[[], Any]) -> Any:
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            found = self.js(what) if isinstance(what, str) else what()
            if found:
                return found
            time.sleep(0.05)
        shown = self.js("document.getElementById('message').textContent")
        raise AssertionError(f"in vain: {what}; the page says {shown!r}")

    def open(self, name: str) -> None:
        """Open a sample, in a new page."""
        self.driver.get("about:blank")
        self.driver.get(self.address)
        self.until("window.fastfss && fastfss.viewer.picture !== null")
        if name != "photo":
            self.js("fastfss.open({kind: 'sample', name: arguments[0]})", name)
            self.until("fastfss.state?.name === 'balls' && fastfss.viewer.picture !== null")

    def element(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def press(self, name: str) -> None:
        self.element(name).click()

    def keys(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains, Keys

        chain = ActionChains(self.driver)
        held = [getattr(Keys, key) for key in keys[:-1]]
        for key in held:
            chain = chain.key_down(key)
        chain = chain.send_keys(getattr(Keys, keys[-1], keys[-1]))
        for key in held:
            chain = chain.key_up(key)
        chain.perform()

    def drag(self, *points: tuple[float, float], right: bool = False) -> None:
        """Press at the first pixel of the frame, let go at the last."""
        from selenium.webdriver import ActionChains

        canvas = self.element("canvas")
        box = canvas.rect
        place = self.js("fastfss.viewer.place()")
        chain = ActionChains(self.driver, duration=50)
        for n, (x, y) in enumerate(points):
            left = place["left"] + x * place["scale"] - box["width"] / 2
            top = place["top"] + y * place["scale"] - box["height"] / 2
            chain = chain.move_to_element_with_offset(canvas, round(left), round(top))
            if n == 0 and not right:
                chain = chain.click_and_hold()
        (chain.context_click() if right else chain.release()).perform()

    def click(self, x: float, y: float, *, right: bool = False) -> None:
        """Click on a pixel of the frame, and wait for the answer."""
        seq = self.js("fastfss.state.seq")
        self.drag((x, y), right=right)
        self.until(
            f"fastfss.state.seq > {seq} && !fastfss.asked && fastfss.link.waiting.size === 0"
        )

    def labels(self) -> np.ndarray:
        width, height, runs = self.js("""(() => {
            const {width, height, labels} = fastfss.viewer.masks;
            return [width, height, Array.from(labels, (n) => String.fromCharCode(48 + n)).join('')];
        })()""")
        return (np.frombuffer(runs.encode(), np.uint8) - 48).reshape(height, width)

    def area(self, number: int = 1) -> int:
        return int((self.labels() == number).sum())

    def follow(self) -> None:
        self.press("propagate")
        self.until("fastfss.busy")
        self.until("!fastfss.busy && fastfss.link.waiting.size === 0")

    def screenshot(self, name: str) -> None:
        """Kept where FASTFSS_SCREENSHOTS says, for people to look at."""
        if folder := os.environ.get("FASTFSS_SCREENSHOTS"):
            time.sleep(0.4)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def problems(self) -> list[str]:
        """What the browser complained of."""
        return [
            row["message"] for row in self.driver.get_log("browser") if row["level"] == "SEVERE"
        ]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served() as found:
        yield found


@pytest.fixture(scope="module")
def shared(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    downloads = tmp_path_factory.mktemp("downloads")
    with chromium(downloads) as driver:
        yield Browser(driver, address, downloads)


@pytest.fixture
def browser(shared: Browser) -> Iterator[Browser]:
    yield shared
    assert not shared.problems()


def test_clicks_undo_and_redo(browser):
    browser.open("photo")
    browser.screenshot("photo-start")
    browser.click(225, 110)
    first = browser.labels()
    assert first[110, 225] == 1 and 200 < first.sum() < first.size / 2
    browser.screenshot("photo-click")
    y, x = np.argwhere(first)[-1].tolist()
    browser.click(x + 0.5, y + 0.5, right=True)
    second = browser.labels()
    assert second.sum() < first.sum() and second[y, x] == 0
    browser.screenshot("photo-negative")
    browser.keys("CONTROL", "z")
    browser.until(lambda: browser.area() == first.sum())
    assert (browser.labels() == first).all()
    browser.press("redo")
    browser.until(lambda: browser.area() == second.sum())
    assert (browser.labels() == second).all()
    assert "ms" in browser.element("stats").text


def test_box_scribble_and_brush(browser):
    browser.open("clip")
    browser.keys("r")
    browser.drag((40, 60), (90, 120), (140, 160))
    browser.until("fastfss.viewer.masks?.labels.includes(1)")
    boxed = browser.labels()
    assert boxed[110, 90] == 1 and not boxed[:, 150:].any()
    browser.keys("n")
    browser.until("fastfss.object === 2")
    browser.keys("p")
    browser.drag((300, 100), (330, 100), (360, 100))
    browser.until("fastfss.viewer.masks?.labels.includes(2)")
    painted = browser.area(2)
    assert 600 < painted < 1100
    browser.keys("x")
    browser.drag((330, 90), (330, 110))
    browser.until(lambda: browser.area(2) < painted)
    browser.screenshot("clip-brush")
    browser.keys("s")
    browser.keys("x")
    browser.drag((360, 220), (365, 235), (355, 245))
    browser.until(lambda: browser.labels()[230, 363] == 2)


def test_following_plays_and_exports_download(browser):
    browser.open("clip")
    browser.click(90, 110)
    browser.press("propagate")
    browser.until("fastfss.frame > 3")
    browser.screenshot("clip-following")
    browser.press("stop")
    browser.until("!fastfss.busy && fastfss.link.waiting.size === 0")
    last = browser.js("fastfss.state.masked[0][1]")
    assert 3 < last < 71
    browser.js("fastfss.show(2)")
    browser.until("fastfss.viewer.masks?.frame === 2")
    shown = browser.labels()
    assert shown.any()
    browser.press("play")
    browser.until(f"fastfss.frame >= {min(last, 12)}")
    browser.press("play")
    browser.screenshot("clip-played")
    browser.press("export")
    path = browser.until(lambda: next(browser.downloads.glob("*.zip"), None))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == last + 1
        assert (np.asarray(Image.open(io.BytesIO(archive.read("00002.png")))) == shown).all()
    browser.js("document.getElementById('format').value = 'coco'")
    browser.js("document.getElementById('format').onchange()")
    browser.press("export")
    path = browser.until(lambda: next(browser.downloads.glob("*.json"), None))
    assert len(json.loads(path.read_text())["images"]) == last + 1


def test_seeking_while_following_stays_where_it_was_sought(browser):
    browser.open("clip")
    browser.click(90, 110)
    browser.press("propagate")
    browser.until("fastfss.frame > 2")
    browser.js("fastfss.show(1)")
    done = browser.js("fastfss.state.masked[0][1]")
    browser.until(f"fastfss.state.masked[0][1] > {done + 1}")
    assert browser.js("fastfss.frame") == 1 and browser.js("fastfss.busy")
    browser.until("fastfss.viewer.masks.frame === 1")
    browser.keys(" ")
    browser.until("!fastfss.busy && fastfss.link.waiting.size === 0")
    assert browser.js("fastfss.frame") == 1


def test_undo_goes_to_the_frame_that_it_changes(browser):
    browser.open("clip")
    browser.click(90, 110)
    browser.js("fastfss.show(9)")
    browser.until("fastfss.viewer.masks?.frame === 9")
    browser.keys("CONTROL", "z")
    browser.until("fastfss.frame === 0 && fastfss.viewer.masks?.frame === 0")
    assert not browser.labels().any()


def test_masks_from_a_file(browser, tmp_path):
    labels = np.zeros((320, 480), np.uint8)
    labels[50:90, 100:200], labels[200:230, 300:380] = 1, 2
    Image.fromarray(labels).save(tmp_path / "masks.png")
    browser.open("clip")
    browser.element("import").send_keys(str(tmp_path / "masks.png"))
    browser.until("fastfss.viewer.masks?.labels.includes(2)")
    assert (browser.labels() == labels).all()


def test_connection_that_breaks_comes_back_with_the_same_session(browser):
    browser.open("photo")
    browser.click(225, 110)
    before = browser.labels()
    browser.js("fastfss.link.socket.close()")
    browser.until("document.getElementById('link').textContent === 'reconnecting'")
    browser.until("document.getElementById('link').textContent === 'connected'")
    browser.click(10, 10, right=True)
    assert not browser.labels()[10, 10]
    browser.press("undo")
    browser.until(lambda: (browser.labels() == before).all())
    browser.driver.refresh()
    browser.until("window.fastfss?.viewer.masks?.labels.includes(1)")
    assert (browser.labels() == before).all()


def test_another_image_becomes_a_support(browser, tmp_path):
    from skimage.data import astronaut

    Image.fromarray(np.ascontiguousarray(astronaut()[:, ::-1])).save(tmp_path / "mirrored.png")
    browser.open("photo")
    browser.press("add-object")
    browser.until("fastfss.object === 1")
    browser.press("add-support")
    browser.element("support-file").send_keys(str(tmp_path / "mirrored.png"))
    browser.until("fastfss.support.viewer.picture !== null && fastfss.support.link")
    browser.until("fastfss.support.link.socket.readyState === 1")
    browser.js("fastfss.support.mark({kind: 'point', positive: true, points: [[287, 110]]})")
    browser.until("!document.getElementById('support-use').disabled")
    browser.screenshot("support-dialog")
    browser.press("support-use")
    browser.until("fastfss.state.supports.length === 1")
    assert "mirrored" in browser.element("supports").text
    browser.screenshot("support-added")


def test_files_are_uploaded_and_broken_ones_explained(browser, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    browser.open("photo")
    browser.press("open")
    browser.until("document.getElementById('open-dialog').open")
    browser.element("files").send_keys(str(tmp_path / "broken.mp4"))
    browser.until("document.getElementById('upload-text').textContent.includes('FFmpeg')")
    browser.screenshot("open-dialog")
    names = [tmp_path / f"{n}.png" for n in range(2)]
    for name in names:
        Image.new("RGB", (64, 48), (40, 90, 30)).save(name)
    browser.element("files").send_keys("\n".join(map(str, names)))
    browser.until("fastfss.state?.count === 2 && fastfss.viewer.picture?.width === 64")
    # The refused upload is the one thing that the browser complains of.
    assert all("400" in problem for problem in browser.problems())


def test_keyboard_alone_is_enough(browser):
    browser.open("photo")
    for _ in range(2):
        browser.keys("CONTROL", "ARROW_LEFT")
    browser.keys("CONTROL", "ENTER")
    browser.until("fastfss.viewer.masks?.labels.includes(1)")
    browser.keys("?")
    browser.until("document.getElementById('keys-dialog').open")
    browser.screenshot("keys")
    browser.keys("ESCAPE")
    browser.keys("v")
    assert "contours" in browser.element("view").text


def test_webcam_is_followed(browser):
    browser.open("photo")
    browser.press("open")
    browser.until("document.getElementById('open-dialog').open")
    browser.press("camera")
    browser.until("fastfss.state?.live && fastfss.frame >= 2 && fastfss.viewer.picture !== null")
    browser.press("camera-frame")
    browser.until("!fastfss.camera.running && fastfss.camera.sent.size === 0")
    width, height = browser.js("fastfss.viewer.size")
    browser.click(width / 2, height / 2)
    browser.until("fastfss.viewer.masks?.labels.includes(1)")
    frame = browser.js("fastfss.frame")
    browser.screenshot("webcam-frozen")
    browser.press("camera-frame")
    browser.until(f"fastfss.frame > {frame + 1}")
    browser.screenshot("webcam")


def test_phone_size(address, tmp_path):
    with chromium(tmp_path, size=(390, 844), touch=True) as driver:
        browser = Browser(driver, address, tmp_path)
        browser.open("photo")
        browser.click(225, 110)
        assert browser.area() > 200
        browser.screenshot("phone")
        wide = browser.js("document.documentElement.scrollWidth")
        assert wide <= browser.js("window.innerWidth"), "it scrolls sideways"
        browser.open("clip")
        browser.click(90, 110)
        browser.screenshot("phone-clip")
        assert not browser.problems()
