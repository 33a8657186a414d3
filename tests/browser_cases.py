"""Pages in a browser, without a window."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium")


def browse(page: Path, *options: str, fragment: str = "") -> str:
    """Return what Chromium prints with these options: by default the page as it is after its scripts."""
    usual = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--window-size=1300,1000")
    command = [CHROMIUM, *usual, *(options or ["--dump-dom"]), f"{page.as_uri()}{fragment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def in_a_frame(page: Path, width: int) -> list:
    """Return what a page posts to its parent, from a frame of this width: a window has at least 500 pixels."""
    outer = page.with_name("outer.html")
    outer.write_text(
        f"<iframe src='{page.name}' style='border: 0; width: {width}px; height: 900px'></iframe><pre></pre>"
        "<script>onmessage = e => document.querySelector('pre').append(JSON.stringify(e.data))</script>"
    )
    return json.loads(re.search(r"<pre>(.*?)</pre>", browse(outer))[1])


def brightness(page: Path, scheme: str) -> float:
    """Return the mean of all pixels of a page's beginning, 0 to 255; scheme: light or dark."""
    out = page.with_name(f"{scheme}.png")
    browse(page, f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}", f"--screenshot={out}")
    return float(np.asarray(Image.open(out).convert("L")).mean())
