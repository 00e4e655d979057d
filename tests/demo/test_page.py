"""The whole page: a real server behind a token, over HTTP and in a real browser."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

pytest.importorskip("gradio")

TOKEN = "sixteen-or-more-letters"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
# Says when the server looks for another machine; the numbers of this machine are let pass. A photo takes
# half a second, so that two that are given at once are under way at the same time.
STARTER = """
import sys
def watch(event, what):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = what[1][0] if event == "socket.connect" and isinstance(what[1], tuple) else what[0]
        if isinstance(host, (str, bytes)) and host not in ("127.0.0.1", "::1", "localhost"):
            print("NETWORK", event, host, file=sys.stderr, flush=True)
sys.addaudithook(watch)
import time
from metricid.cli.main import main
from metricid.demo.studio import Studio
read = Studio.photo
Studio.photo = lambda studio, data: (time.sleep(0.5), read(studio, data))[1]
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def server(run_folder, tmp_path_factory):
    """A running `metricid demo` with a token."""
    folder = tmp_path_factory.mktemp("server")
    errors = folder / "errors.txt"
    command = ["demo", str(run_folder), "--port", "0", "--workers", "0", "--token", TOKEN, "--device", "cpu"]
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER, *command],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "HOME": str(folder)},
        )
    address = process.stdout.readline().strip()
    if not address:
        pytest.fail(errors.read_text())
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    yield SimpleNamespace(address=address, port=port, process=process, errors=errors, folder=folder)
    process.kill()
    process.wait()


def ask(server, method, path, **headers):
    """Status, headers and body of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    body = headers.pop("body", None)
    connection.request(method, path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def upload_folder(server):
    """Where this server keeps uploads under way."""
    parents = (Path("/dev/shm"), server.folder)
    return [f for p in parents if p.is_dir() for f in p.glob(f"metricid-demo-{server.process.pid}-*")]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/theme.css"),
        ("GET", "/assets/index.js"),
        ("GET", "/static/fonts"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/startup-events"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/queue/join"),
        ("GET", "/gradio_api/queue/data?session_hash=x"),
        ("POST", "/gradio_api/run/predict"),
        ("GET", "/gradio_api/heartbeat/x"),
        ("POST", "/login"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/no/such/page"),
    ],
)
def test_without_the_token_every_request_is_refused(server, method, path):
    status, _, body = ask(server, method, path)
    assert status == 401 and body == b"a token is needed\n"
    assert ask(server, method, path, authorization="Bearer " + TOKEN[:-1])[0] == 401


def test_with_the_token_the_page_comes_but_no_file_of_this_machine(server, run_folder):
    known = {"authorization": f"Bearer {TOKEN}"}
    status, headers, body = ask(server, "GET", "/", **known)
    assert status == 200 and b"gradio" in body
    assert "default-src 'self'" in headers["content-security-policy"]
    for file in ("/etc/passwd", run_folder / "recipe.yaml", run_folder / "checkpoints" / "best.pt"):
        assert ask(server, "GET", f"/gradio_api/file={file}", **known)[0] in (403, 404)
    for path in ("/docs", "/openapi.json", "/monitoring"):
        assert ask(server, "GET", path, **known)[0] in (403, 404)


def test_too_large_a_file_is_refused_before_it_is_read(server):
    boundary = "limit"
    start = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    body = start.encode() + bytes(21 * 2**20) + f"\r\n--{boundary}--\r\n".encode()
    status, _, _ = ask(
        server,
        "POST",
        "/gradio_api/upload",
        body=body,
        authorization=f"Bearer {TOKEN}",
        content_type=f"multipart/form-data; boundary={boundary}",
    )
    assert status == 413
    assert not [
        f for folder in upload_folder(server) for f in folder.rglob("*") if f.is_file() and f.stat().st_size
    ]


class Page:
    """The page in a browser, as a reader handles it."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition, what):
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                found = condition()
            except Exception:
                found = None  # an element that was being replaced
            if found:
                return found
            time.sleep(0.1)
        body = self.driver.find_element("css selector", "body").text
        raise AssertionError(f"{what}; the page says: {body[:2000]}")

    def text(self, name):
        return self.driver.find_element("id", name).text

    def see(self, name, text):
        self.wait(lambda: text in self.text(name), f"no {text!r} in #{name}")

    def upload(self, name, file):
        self.wait(lambda: self.find(f"#{name} input[type=file]"), f"no place to drop in #{name}")
        self.find(f"#{name} input[type=file]")[0].send_keys(str(file))

    def tab(self, name):
        self.wait(
            lambda: [b for b in self.find("button[role=tab]") if b.text.strip() == name], f"no tab {name}"
        )
        next(b for b in self.find("button[role=tab]") if b.text.strip() == name).click()

    def set_threshold(self, value):
        box = self.find("#threshold input[type=number]")[0]
        self.driver.execute_script(
            "arguments[0].value = arguments[1];"
            "arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"
            "arguments[0].dispatchEvent(new Event('change', {bubbles: true}));"
            "arguments[0].dispatchEvent(new Event('blur', {bubbles: true}));",
            box,
            str(value),
        )

    def width(self, pixels):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )

    def picture(self, name):
        folder = os.environ.get("METRICID_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            height = self.driver.execute_script("return document.documentElement.scrollHeight")
            size = self.driver.execute_script("return window.innerWidth")
            self.driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": size, "height": max(900, height), "deviceScaleFactor": 1, "mobile": False},
            )
            self.driver.save_screenshot(str(Path(folder) / f"demo-{name}-{size}.png"))

    def enter(self):
        self.driver.get(self.address)
        if self.find("#token"):
            self.find("#token")[0].send_keys(TOKEN)
            self.find("button")[0].click()
        self.wait(lambda: self.find("#search-photo"), "the page does not come")


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield Page(chrome, server.address)
    chrome.quit()


@pytest.fixture(scope="module")
def photos(faces, run_folder, tmp_path_factory):
    """Files of test images of the run: two of one person, one of another; and what is no photo."""
    folder = tmp_path_factory.mktemp("photos")
    lines = (run_folder / "manifests" / "test.csv").read_text().splitlines()[1:]
    rows = [[cell.strip('"') for cell in line.split(",")] for line in lines]
    first, name = rows[0][0], rows[0][1]
    twin = next(path for path, identity, *_ in rows[1:] if identity == name)
    other = next(path for path, identity, *_ in rows if identity != name)
    files = {}
    for title, path in (("first", first), ("twin", twin), ("other", other)):
        files[title] = folder / f"{title}.png"
        cv2.imwrite(str(files[title]), faces.read(path)[:, :, ::-1])
    (folder / "letter.jpg").write_text("Dear Sir or Madam")
    cv2.imwrite(str(folder / "tiny.png"), faces.read(first)[:6, :6])
    return SimpleNamespace(**files, letter=folder / "letter.jpg", tiny=folder / "tiny.png", identity=name)


def test_a_click_through(page, server, photos):
    """One visit, so that the server is started once: upload, threshold, compare, browse."""
    page.width(1280)
    page.enter()

    page.upload("search-photo", photos.first)
    page.see("hits", "of the 10 nearest of")
    best = page.find("#hits .m-card")[0]
    assert photos.identity in best.text and "1.000 match" in best.text, "the image itself comes first"
    assert len(page.find("#hits .m-card img")) == 10
    assert page.driver.execute_script(
        "return [...document.querySelectorAll('#hits img')].every(i => i.complete && i.naturalWidth && i.alt)"
    )
    page.picture("search")

    page.set_threshold(0.2)
    page.see("meaning", "score 0.200 or more")
    page.wait(lambda: len(page.find("#hits .m-match")) == 10, "all match at a low threshold")
    page.set_threshold(1)
    page.see("meaning", "score 1.000 or more")
    page.wait(lambda: len(page.find("#hits .m-other")) >= 9, "none but the image itself matches at 1")
    page.find("#presets button")[0].click()
    page.wait(lambda: page.find("#threshold input")[0].get_attribute("value") not in ("1", "0.2"), "FAR 0.1")
    page.see("meaning", "FAR 9.")

    page.upload("search-photo", photos.letter)
    page.see("hits", "not an image in JPEG")
    page.picture("problem")
    page.upload("search-photo", photos.tiny)
    page.see("hits", "6 x 6 pixels (width x height) show too little")
    assert not page.find("#search-shown img"), "the old photo is gone from the page"

    page.tab("Compare")
    page.upload("compare-1", photos.first)
    page.upload("compare-2", photos.first)  # without waiting for the first
    page.see("verdict", "Same person")
    assert page.find("#compare-shown-1 img") and page.find("#compare-shown-2 img")
    page.see("verdict", "Score 1.000")
    page.upload("compare-2", photos.other)
    page.wait(lambda: "Score 1.000" not in page.text("verdict"), "another photo gives another score")
    page.see("verdict", "FAR of")
    page.picture("compare")

    page.tab("Confusions")
    page.wait(lambda: len(page.find("#confused .m-side")) == 2, "two people are shown")
    before = page.text("confused")
    page.picture("confusions")
    page.find("#next-pair")[0].click()
    page.wait(lambda: page.text("confused") not in ("", before), "the next pair is another one")

    left = [
        f for folder in upload_folder(server) for f in folder.rglob("*") if f.is_file() and f.stat().st_size
    ]
    assert upload_folder(server) and not left, "no byte of a photo is on a disk"


@pytest.mark.parametrize("pixels", [1280, 390])
def test_nothing_sticks_out(page, photos, pixels):
    page.width(pixels)
    page.enter()
    page.upload("search-photo", photos.first)
    page.wait(lambda: len(page.find("#hits .m-card img")) == 10, "ten images")
    for name in ("Search", "Compare", "Confusions"):
        page.tab(name)
        wide = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= pixels, f"{name} is {wide} pixels wide"
        page.picture(f"narrow-{name.lower()}" if pixels == 390 else f"wide-{name.lower()}")
        page.width(pixels)


def test_the_browser_asks_no_other_address_and_sees_no_error(page, server):
    """Uses the log of the visits above, and makes one of its own."""
    page.enter()
    asked, trouble = set(), []
    for entry in page.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            told = message["params"]
            asked.add(told["request"]["url"] if "request" in told else told["url"])
    network = {url for url in asked if url.startswith(("http:", "https:", "ws:", "wss:", "ftp:"))}
    assert network and all(url.startswith(server.address) for url in network)
    for entry in page.driver.get_log("browser"):
        if entry["level"] == "SEVERE" and "401" not in entry["message"]:  # the token was asked for once
            trouble.append(entry["message"])
    assert not trouble


def test_ctrl_c_ends_it_cleanly(server):
    """The last test of this file: it ends the server."""
    folders = upload_folder(server)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    assert server.process.stdout.read() == "", "the address was the only line on stdout"
    said = server.errors.read_text()
    assert said.rstrip().endswith("ended; no photo was kept"), said
    assert "Traceback" not in said, said
    assert "Error" not in said and TOKEN not in said
    assert "NETWORK" not in said, "the server looks for no other machine"
    assert folders and not any(folder.exists() for folder in folders)
    assert not (server.folder / "gradio").exists() and not (server.folder / ".gradio").exists()
