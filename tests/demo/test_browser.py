"""The page in a real browser: its layout, what its controls do, and that no request leaves this machine."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from paths import ROOT

from s3prl_ofa.demo.view import analyse, example_path, examples, view_at
from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]

SECONDS = 300  # timeout of every wait; generous, for a busy machine
LOCAL = re.compile(r"(http://127\.0\.0\.1:\d+/|data:|blob:http://127\.0\.0\.1)")
# Logs every connection and name lookup of the process to a file.
SERVER = """
import socket, sys
log = open(sys.argv[1], "w", buffering=1)
sys.addaudithook(lambda event, args: event in ("socket.connect", "socket.getaddrinfo") and print(event, args, file=log))
socket.socket().connect_ex(("127.0.0.1", 9))  # proves that connections are logged
from s3prl_ofa.cli import main
sys.exit(main(["demo", "--port", "0"]))
"""
VIOLATION = """() => new Promise(resolve => {
    document.addEventListener("securitypolicyviolation", event => resolve(event.blockedURI));
    fetch("http://127.0.0.2:9/stolen").catch(() => {});
})"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a page served by a separate process, which must contact no other host and leave no audio."""
    folder = tmp_path_factory.mktemp("server")
    log = folder / "connections"
    command = [sys.executable, "-c", SERVER, str(log)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as server:
        try:
            yield next(line for line in server.stdout if line.startswith("http")).split()[0]
        finally:
            server.terminate()
    assert server.returncode == 143  # SIGTERM, as every command
    asked = log.read_text().splitlines()
    assert asked and not [line for line in asked if not re.search(r"'(127\.0\.0\.1|localhost)'", line)], asked
    assert not list(folder.glob("s3prl-ofa-demo-*"))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # it beeps
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *microphone])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """A function (width, height) -> the page with its first utterance; every request must go to this machine."""
    asked = []
    with contextlib.ExitStack() as opened:

        def open_page(width: int, height: int):
            page = opened.enter_context(browser.new_page(viewport={"width": width, "height": height}))
            page.set_default_timeout(1000 * SECONDS)
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address)
            page.locator("#numbers table").wait_for()
            page.locator("#side-B img").wait_for()
            return page

        yield open_page
    assert asked and not [url for url in asked if not LOCAL.match(url)]


def numbers(page) -> dict[str, list[str]]:
    """The table's rows by their label."""
    rows = page.locator("#numbers tbody tr").all()
    cells = [row.locator("td").all_inner_texts() for row in rows]
    return {label.strip(): [value.strip().replace(",", "") for value in values] for label, *values in cells}


def wait_for_frames(page, column: int, wanted: int) -> None:
    """Waits until the table shows so many frames for A (0) or B (1)."""
    cell = page.locator("#numbers tbody tr").first.locator("td").nth(1 + column)
    cell.filter(has_text=re.compile(rf"^\s*{wanted}\s*$")).wait_for()


@pytest.mark.parametrize(("width", "height"), [(1440, 1000), (420, 860)])
def test_looks(visit, width, height):
    """On a desktop and on a phone: figures wide enough to read, no horizontal scrolling; a screenshot in artifacts/."""
    page = visit(width, height)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [page.locator(f"#side-{letter} img").bounding_box() for letter in "AB"]
    for box in boxes:
        assert box["width"] > (0.35 if width > 1000 else 0.8) * width
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    beside = boxes[0]["y"] == boxes[1]["y"]
    assert beside == (width > 1000)  # side by side where there is room, otherwise stacked
    if beside:
        assert boxes[0]["y"] + boxes[0]["height"] <= height  # visible without scrolling
    assert not page.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
    page.screenshot(path=ROOT / "artifacts" / f"demo-{width}x{height}.png", full_page=True)


def test_use(visit, tmp_path):
    """A slider, a click, an upload, a recording, and a file that is not audio."""
    import s3prl_ofa

    model = s3prl_ofa.load("tiny")
    first = load_audio(example_path(next(iter(examples()))))
    at = {period: view_at(model, analyse(model, first), period) for period in (20.0, 50.0, 90.0)}
    page = visit(1440, 1000)
    shown = numbers(page)
    assert shown["frames"][:2] == [str(len(at[period].times)) for period in (20.0, 50.0)]
    assert float(shown["hidden states (MB)"][2]) == pytest.approx(0.4, abs=0.02)

    # A slider
    image = page.locator("#side-B img")
    before = image.get_attribute("src")
    page.locator("#side-B input[type=range]").press("End")
    wait_for_frames(page, 1, len(at[90.0].times))
    after = numbers(page)
    assert image.get_attribute("src") != before
    for label in ("hidden states (MB)", "million multiply-accumulates"):
        assert float(after[label][1]) < float(shown[label][1])
    assert float(after["time (ms)"][1]) > 0

    # Clicking a frame plays the audio between its boundaries
    box = image.bounding_box()
    with page.expect_response(lambda response: response.url.endswith(".wav")) as fetched:
        image.click(position={"x": 0.5 * box["width"], "y": 0.3 * box["height"]})
    label = page.locator("#side-B").get_by_text(re.compile(r"frame \d+ of"))
    frame = int(re.search(r"frame (\d+) of", label.inner_text())[1]) - 1
    played, rate = soundfile.read(io.BytesIO(page.request.get(fetched.value.url).body()), dtype="float32")
    assert rate == SAMPLE_RATE
    np.testing.assert_allclose(played, at[90.0].frame_audio(frame), atol=1e-3)
    start, end = at[90.0].times[frame]
    assert start <= (0.5 - 0.07) / 0.92 * len(first) / SAMPLE_RATE <= end

    # An uploaded file, at another sample rate
    soundfile.write(tmp_path / "own.flac", np.sin(np.arange(48_000) / 20), 24_000)
    upload = page.locator("#audio input[type=file]")
    page.locator("#audio").get_by_label("Clear").click()
    page.locator("#numbers table").wait_for(state="detached")
    upload.set_input_files(tmp_path / "own.flac")
    wait_for_frames(page, 0, 99)

    # A file that is not audio is refused in one sentence, and the page still works
    (tmp_path / "none.wav").write_text("not audio")
    page.locator("#audio").get_by_label("Clear").click()
    upload.set_input_files(tmp_path / "none.wav")
    page.get_by_text("cannot be read as audio").wait_for()

    # A recording
    page.locator("#audio").get_by_label("Clear").click()
    page.get_by_label("Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.locator("#numbers table").wait_for()
    assert 30 <= int(numbers(page)["frames"][0]) <= 600

    # The browser blocks requests to other hosts
    assert "127.0.0.2" in page.evaluate(VIOLATION)
