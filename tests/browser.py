"""A real browser for the tests of pages: Chromium without a window, asked what it saw."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path"
)

PHONE, DESK = 390, 1280

# stands before everything else on the page
_WATCH = """<script>
window.seen = {errors: []};
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"])
  addEventListener(kind, at => seen.errors.push(kind + ": " + (at.message || at.blockedURI || at.reason)), true);
for (const kind of ["error", "warn"]) console[kind] = (...words) => seen.errors.push(words.join(" "));
</script>"""

# stands after everything else, and writes down what came of it
_PROBE = """<script>
addEventListener("load", () => {
  const root = document.documentElement, act = () => {PLEASE};
  seen.act = act();
  seen.innerWidth = innerWidth;
  seen.scrollWidth = root.scrollWidth;
  seen.outside = [...document.body.querySelectorAll("*")]
    .filter(one => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".scroll, svg, .hidden, .skip"))
    .map(one => one.outerHTML.slice(0, 120));
  seen.requests = performance.getEntriesByType("resource").map(one => one.name).filter(one => !one.startsWith("data:"));
  seen.images = [...document.images].map(one => ({alt: one.alt, width: one.naturalWidth, shown: one.clientWidth}));
  seen.contrast = getComputedStyle(document.body).color + " on " + getComputedStyle(document.body).backgroundColor;
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>"""

# Chromium's windows are at least 500 wide; a frame is as wide as it is told, and is the page's whole world
_FRAME = """<!DOCTYPE html><pre id="probe"></pre><script>
addEventListener("message", message => { document.getElementById("probe").textContent = message.data; });
</script><iframe src="SOURCE" style="width:WIDTHpx;height:900px;border:0"></iframe>"""


def look(path, width, tmp_path, act="return null"):
    """What Chromium sees of a page in a window of a width, after a piece of JavaScript that may do something."""
    page = path.read_text(encoding="utf-8")
    watched = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{_WATCH}', 1)
    watched = watched.replace("</body>", _PROBE.replace("PLEASE", act) + "</body>", 1)
    copy = tmp_path / f"watched_{width}.html"
    copy.write_text(watched, encoding="utf-8")
    frame = tmp_path / f"frame_{width}.html"
    frame.write_text(_FRAME.replace("SOURCE", copy.as_uri()).replace("WIDTH", str(width)), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1400,1000", "--virtual-time-budget=8000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    found = re.search(r'<pre id="probe">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page did not load: {done.stderr[-2000:]}"
    return json.loads(html.unescape(found[1]))


def assert_fits(seen, width):
    """Nothing wider than the window, no error, no request, and every image there and described."""
    assert seen["innerWidth"] == width
    assert seen["scrollWidth"] <= seen["innerWidth"], seen["outside"]
    assert seen["outside"] == [] and seen["errors"] == [] and seen["requests"] == []
    assert all(image["alt"] and image["width"] > 0 and image["shown"] > 0 for image in seen["images"])
