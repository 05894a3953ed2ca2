"""The coordinator's page in a real browser without a screen: what it loads, says, and does with a keyboard.

Chromium is driven through its debugging pipe, so nothing more need be installed than the browser.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfree.host.channel import Address
from server.doors.page import served
from server.doors.tokens import Tokens
from server.events import Event
from server.storage.run_directory import RunDirectory, event_to_line

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FOUND = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    FOUND is None, reason=f"needs a browser: none of {', '.join(NAMES)} is installed"
)
SECONDS = 120.0
"""For one answer of the browser, on a machine that is busy."""
PHONE, DESK = (380, 800), (1280, 900)
LAUNCH = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def _high(descriptor: int) -> int:
    """A copy that is out of the way of 3 and 4, where the browser looks for its pipe."""
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)
    os.close(descriptor)
    return copy


class Browser:
    """One page of a headless Chromium, and everything that it reported."""

    def __init__(self, profile: Path) -> None:
        reads, self._out = map(_high, os.pipe())
        self._in, writes = map(_high, os.pipe())
        options = ["--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"]
        options += [
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        options += ["--no-sandbox"] * (os.geteuid() == 0)  # it refuses to begin otherwise
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(reads), str(writes), str(FOUND), *options],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._buffer, self._numbers, self._session = b"", itertools.count(1), ""
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """What a method of the DevTools protocol answers."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        message = json.dumps({"id": number, "method": method, "params": params, **session})
        os.write(self._out, message.encode() + b"\0")
        while (heard := self._next()).get("id") != number:
            self.events.append(heard)
        assert "error" not in heard, f"{method}: {heard['error']}"
        return dict(heard["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], SECONDS)[0], "the browser says nothing"
            heard = os.read(self._in, 1 << 16)
            assert heard, "the browser has ended"
            self._buffer += heard
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of what it promises."""
        told = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def open(self, at: Address, size: tuple[int, int] = DESK, *, dark: bool = False) -> None:
        """Go to the page, and wait until all of it is there."""
        width, height = size
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        begun = len(self.events)
        self("Page.navigate", url=f"http://{at}/")
        while not any(each.get("method") == "Page.loadEventFired" for each in self.events[begun:]):
            self.events.append(self._next())

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def complaints(self) -> list[Any]:
        """Errors and warnings of the console, exceptions, and whatever the policy of the page forbade."""
        return [
            each["params"]
            for each in self.events
            if each.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        ]

    def requested(self) -> set[str]:
        """Addresses of all that was loaded."""
        asked = (each for each in self.events if each.get("method") == "Network.requestWillBeSent")
        return {each["params"]["request"]["url"] for each in asked}

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        shown = self("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        file.write_bytes(base64.b64decode(shown["data"]))

    def close(self) -> None:
        """End the browser with all its processes."""
        self._session = ""
        self("Browser.close")
        self._process.wait(SECONDS)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


@pytest.fixture
def at(begun: RunDirectory, hand_over: Callable[..., str]) -> Iterator[Address]:
    """A page with something in every part of it, some of it meant to do harm."""
    Tokens(begun.tokens).add("an-organisation-whose-name-is-as-long-as-a-name-may-be-here")
    ids = [
        hand_over(begun, seed=seed, organisation="<script>document.title='no'</script>") for seed in range(3)
    ]
    begun.store().accept(ids[0])
    begun.store().quarantine(ids[1], "<img src=http://192.0.2.1/x onerror=document.title='no'>" + "y" * 400)
    begun.write_recovered({each: torch.full((5, 3, 16, 16), 90, dtype=torch.uint8) for each in ids})
    learn(begun, *range(1, 6))
    with begun.events.open("a") as file:
        file.write(event_to_line(Event("collect", "failed", {"node": 2**62, "reason": "it crashed"})))
    with served(begun.path, Address("127.0.0.1", 0)) as address:
        yield address


def learn(run: RunDirectory, *iterations: int) -> None:
    with run.events.open("a") as file:
        for at in iterations:
            values = {"iteration": at, "of": 9, "replay_loss": 1 / at, "distillation_loss": 2 / at}
            file.write(event_to_line(Event("learn", "progress", values, 60.0 * at)))


SHOWN = """new Promise((done) => {
  const look = () => document.body.innerText.includes(%s) && done(true);
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
  look();
})"""


def test_it_loads_nothing_from_elsewhere_and_the_console_stays_empty(browser: Browser, at: Address) -> None:
    browser.open(at)
    browser.evaluate(SHOWN % json.dumps("Iteration 5 of 9"))
    assert browser.requested() >= {f"http://{at}/"}
    assert all(each.startswith((f"http://{at}/", "data:")) for each in browser.requested())
    assert browser.evaluate("document.title").startswith("federation: FedFREE")
    assert browser.evaluate("document.images.length === 1 && document.images[0].naturalWidth > 0")
    assert browser.evaluate("getComputedStyle(document.querySelector('.skip')).position") == "absolute"
    assert browser.complaints() == []


@pytest.mark.parametrize(
    "harm",
    [
        "const i = new Image(); i.src = 'http://192.0.2.1/x'; document.body.append(i)",
        "const s = document.createElement('script'); s.text = 'document.title = 1'; document.body.append(s)",
        "document.body.setAttribute('style', 'color: red')",
        "fetch('http://192.0.2.1/').catch(() => 0)",
    ],
)
def test_a_browser_forbids_what_the_page_has_no_need_of_and_says_so(
    browser: Browser, at: Address, harm: str
) -> None:
    browser.open(at)
    told = "new Promise((done) => document.addEventListener('securitypolicyviolation', () => done(true)))"
    assert browser.evaluate(f"(() => {{ const told = {told}; {harm}; return told; }})()")
    assert browser.complaints() and browser.evaluate("document.title") != "1"


def test_it_follows_the_run_and_leaves_the_reader_where_she_was(
    browser: Browser, at: Address, begun: RunDirectory
) -> None:
    browser.open(at)
    browser.evaluate(
        "document.getElementById('numbers-summary').focus(); document.getElementById('numbers').open = true"
    )
    learn(begun, 6)
    assert browser.evaluate(SHOWN % json.dumps("Iteration 6 of 9"))
    assert browser.evaluate("document.activeElement.id") == "numbers-summary"
    assert browser.evaluate("document.getElementById('numbers').open")
    assert browser.complaints() == []


def test_it_says_that_what_it_shows_is_old_when_nobody_answers(browser: Browser, begun: RunDirectory) -> None:
    with served(begun.path, Address("127.0.0.1", 0)) as at:
        browser.open(at)
    assert browser.evaluate(SHOWN % json.dumps("No answer"))
    with served(begun.path, at):
        assert browser.evaluate(SHOWN % json.dumps("Contributions arrive: 0 received"))


def test_a_keyboard_reaches_all_of_it(browser: Browser, at: Address) -> None:
    browser.open(at)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().top >= 0")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.activeElement.id") == "main"
    reached = []
    for _ in range(4):
        browser.press("Tab", 9)
        reached.append(browser.evaluate("document.activeElement.id"))
        assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached[:3] == ["contributions-scroll", "organisations-scroll", "numbers-summary"]
    browser.evaluate("document.getElementById('numbers-summary').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.getElementById('numbers').open")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_it_fits_a_phone_and_a_desk_by_day_and_by_night(
    browser: Browser, at: Address, size: tuple[int, int], dark: bool, tmp_path: Path
) -> None:
    browser.open(at, size, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert browser.evaluate(CONTRASTS) >= 4.5
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert browser.complaints() == []


CONTRASTS = """(() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((each) => each / 255);
    const [r, g, b] = parts.map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (each) => {
    const colour = getComputedStyle(each).backgroundColor;
    return colour !== "rgba(0, 0, 0, 0)" ? colour : behind(each.parentElement);
  };
  const worded = [...document.querySelectorAll("body *")].filter((each) =>
    [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) && each.offsetParent);
  return Math.min(...worded.map((each) => {
    const [low, high] = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
})()"""
"""The least contrast of any words with what is behind them, as of WCAG 2.2, relative luminance."""
