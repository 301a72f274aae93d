"""The page in Chromium: how soon one may type, what comes over the wire, and a long conversation.

Every load is a browser context of its own, so nothing is kept from the one before. A clock starts
with the navigation, in the page itself: one reads it when the message box has the cursor, and one
when all messages of the long conversation are there and its last one is in sight. The scroll then
goes from the end to the beginning, some pixels a frame, and the time of every frame is taken.
"""

from __future__ import annotations

import contextlib
import json as json_module
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from served import serving, tiny_model

Count = Annotated[int, tyro.conf.arg(metavar="N")]

SECOND = 1000.0
"""Milliseconds until one may type, at most, at the 95th percentile."""

BYTES = 160_000
"""Most bytes of the page, gzipped, without the parts that formulas need."""

FORMULAS = re.compile("assets/(math-|KaTeX_)")
"""KaTeX and its fonts, fetched with the first formula."""

LONG_FRAME = 50.0
"""Milliseconds of a frame that is seen to stutter."""

LONG_FRAMES = 0.01
"""Share of frames that may be long."""

PIXELS = 300
"""Scrolled in a frame: 18,000 a second at 60 frames."""

CLOCKS = """
window.typing = new Promise((done) => {
  addEventListener('focusin', (event) => {
    if (event.target.tagName === 'TEXTAREA') done(performance.now());
  });
});
window.open_ = new Promise((done) => {
  const look = () => {
    const found = document.querySelectorAll('article');
    const last = found[found.length - 1]?.getBoundingClientRect();
    if (found.length >= window.wanted && last.height > 0 && last.top < innerHeight)
      done(performance.now());
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
});
window.late = new Promise((_, fail) => setTimeout(() => fail('nothing in two minutes'), 120000));
"""

SCROLL = """async (pixels) => {
  const box = document.querySelector('.scroll');
  const frame = () => new Promise(requestAnimationFrame);
  for (let n = 0; n < 30; n++) await frame();
  const times = [];
  let last = await frame();
  while (box.scrollTop > 0 && times.length < 20000) {
    box.scrollTop -= pixels;
    const now = await frame();
    times.push(now - last);
    last = now;
  }
  return times;
}"""

ANSWER = """The sky is **blue** since the air scatters short waves more than long ones ({number}).

1. At noon the way through the air is short.
2. In the evening it is *long*, and what is left is red.

| colour | nanometres | scattered |
|---|---|---|
| blue | 450 | 4.4 |
| red | 700 | 0.7 |

```python
def scattered(nanometres: float) -> float:
    \"\"\"How much more than at 650 nm.\"\"\"
    return (650 / nanometres) ** 4  # Rayleigh
```
"""


def main(
    loads: Count = 20,
    messages: Count = 500,
    opens: Count = 5,
    model: str = "",
    chromium: str = "",
    json: bool = False,
) -> int:
    """Load the page with nothing kept, open a long conversation and scroll through it.

    The exit code is 1 where a bar is missed.

    Example: python benchmarks/page.py --loads 20 --json

    Args:
        loads: Of the empty page.
        messages: In the long conversation.
        opens: Of the long conversation.
        model: A name or a path; a tiny one of random weights if it is left out.
        chromium: The browser's program; LMSMITH_CHROMIUM, or one on the path, if it is left out.
        json: Print one JSON object instead of a table.
    """
    from lmsmith.server import pages

    if loads < 1 or opens < 1 or messages < 2:
        sys.exit("--loads and --opens are 1 or more, --messages 2 or more")
    found = pages.assets()
    if not found:
        sys.exit("the page is not built: python hatch_build.py")
    with tempfile.TemporaryDirectory() as folder, browsing(chromium) as browser:
        path = model or str(tiny_model(Path(folder)))
        database = f"{folder}/page.db"
        talk = write_talk(database, messages)
        memory = "0" if model else "0.2"
        words = [f"m={path}", "--database", database, "--memory", memory]
        status = Console(stderr=True)
        with serving(*words) as server:
            address = f"http://127.0.0.1:{server.port}"
            load(browser, address)  # the server's own first time
            first = [load(browser, address) for _ in status_of(status, "load", loads)]
            long = [
                open_talk(browser, f"{address}/c/{talk}", messages)
                for _ in status_of(status, "conversation", opens)
            ]
    figures = summary(first, long, messages)
    parts = {name: each for name, each in found.items() if not FORMULAS.match(name)}
    figures["page_kb"] = sum(len(each.packed) for each in parts.values()) / 1000
    figures["bars_held"] = (
        figures["typing_ms"]["p95"] <= SECOND
        and figures["page_kb"] <= BYTES / 1000
        and figures["long_frames"] <= LONG_FRAMES * figures["frames"]
    )
    if json:
        print(json_module.dumps(figures, indent=2))
    else:
        show(figures)
    return 0 if figures["bars_held"] else 1


@contextlib.contextmanager
def browsing(chromium: str) -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "google-chrome")
    program = (
        chromium
        or os.environ.get("LMSMITH_CHROMIUM")
        or next(filter(None, map(shutil.which, names)), "")
    )
    if not program:
        sys.exit("chromium is not here: apt-get install chromium, or --chromium FILE")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def write_talk(database: str, messages: int) -> str:
    """A conversation of questions and answers with lists, tables and code; its id."""
    from lmsmith.feedback.store import Store

    with contextlib.closing(Store(database)) as store:
        me = store.person("owner", "admin").id
        talk = store.begin(me, "A long talk").id
        parent: int | None = None
        for number in range(messages):
            answers = number % 2 == 1
            said = (
                ANSWER.format(number=number) if answers else f"Question {number}: why is it blue?"
            )
            role = "assistant" if answers else "user"
            parent = store.add_message(
                me, talk, parent, role, said, model="m" if answers else ""
            ).id
    return talk


def status_of(status: Console, what: str, count: int) -> Iterator[int]:
    """Numbers, said as they go."""
    with status.status("") as line:
        for number in range(count):
            line.update(f"{what} {number + 1} of {count}")
            yield number


@contextlib.contextmanager
def visited(browser: Any, address: str, wanted: int) -> Iterator[tuple[Any, dict[str, float]]]:
    """The page in a context of its own, and the bytes that came over the wire for its parts."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US")
    try:
        page = context.new_page()
        page.add_init_script(f"window.wanted = {wanted};{CLOCKS}")
        network = context.new_cdp_session(page)
        network.send("Network.enable")
        parts: dict[str, str] = {}
        bytes_of: dict[str, float] = {}

        def asked(event: dict[str, Any]) -> None:
            parts[event["requestId"]] = event["request"]["url"]

        def came(event: dict[str, Any]) -> None:
            bytes_of[parts.get(event["requestId"], "")] = event["encodedDataLength"]

        network.on("Network.requestWillBeSent", asked)
        network.on("Network.loadingFinished", came)
        page.goto(address)
        yield page, bytes_of
    finally:
        context.close()


def load(browser: Any, address: str) -> dict[str, float]:
    """The empty page: milliseconds until one may type, and until something was painted; kB."""
    with visited(browser, address, 1) as (page, bytes_of):
        typing = page.evaluate("Promise.race([window.typing, window.late])")
        page.keyboard.type("x")
        if page.locator("textarea").input_value() != "x":
            raise RuntimeError("the message box had the cursor and took no letter")
        painted = page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        )
        page.wait_for_load_state("networkidle")
        own = [size for url, size in bytes_of.items() if "/assets/" in url or url == f"{address}/"]
        return {
            "typing_ms": typing,
            "painted_ms": painted or math.nan,
            "wire_kb": sum(own) / 1000,
        }


def open_talk(browser: Any, address: str, messages: int) -> dict[str, Any]:
    """A long conversation: milliseconds until its end is in sight, and those of each frame of a
    scroll to its beginning."""
    with visited(browser, address, messages) as (page, _):
        opened = page.evaluate("Promise.race([window.open_, window.late])")
        return {"open_ms": opened, "frames_ms": page.evaluate(SCROLL, PIXELS)}


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value that so many are not above."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(
    first: Sequence[dict[str, float]], long: Sequence[dict[str, Any]], messages: int
) -> dict[str, Any]:
    """Percentiles of all loads, and of all frames together."""

    def both(values: Sequence[float]) -> dict[str, float]:
        return {"p50": percentile(values, 0.5), "p95": percentile(values, 0.95)}

    frames = [each for opened in long for each in opened["frames_ms"]]
    return {
        "loads": len(first),
        "typing_ms": both([each["typing_ms"] for each in first]),
        "painted_ms": both([each["painted_ms"] for each in first]),
        "wire_kb": max(each["wire_kb"] for each in first),
        "messages": messages,
        "open_ms": both([each["open_ms"] for each in long]),
        "frames": len(frames),
        "frame_ms": both(frames) | {"worst": max(frames)},
        "long_frames": sum(each > LONG_FRAME for each in frames),
    }


def show(figures: dict[str, Any]) -> None:
    table = Table("measured", "p50", "p95", "bar")
    for name, label, bar in (
        (
            "typing_ms",
            f"until one may type, {figures['loads']} cold loads, ms",
            f"{SECOND:.0f} (p95)",
        ),
        ("painted_ms", "until something is painted, ms", ""),
        ("open_ms", f"until {figures['messages']} messages are open, ms", ""),
        ("frame_ms", f"a frame of the scroll through them, {figures['frames']} frames, ms", ""),
    ):
        table.add_row(label, f"{figures[name]['p50']:.0f}", f"{figures[name]['p95']:.0f}", bar)
    longest = f"longest {figures['frame_ms']['worst']:.0f} ms"
    most = f"{LONG_FRAMES:.0%} of frames"
    table.add_row(f"frames above {LONG_FRAME:.0f} ms", str(figures["long_frames"]), longest, most)
    table.add_row("over the wire before one may type, kB", f"{figures['wire_kb']:.1f}", "", "")
    table.add_row(
        "all parts but KaTeX, kB gzipped", f"{figures['page_kb']:.1f}", "", f"{BYTES / 1000:.0f}"
    )
    Console().print(table)
    print("all bars are held" if figures["bars_held"] else "a bar is missed")


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
