"""Saves the tabs of TensorBoard as a real browser shows them: python scripts/benchmarks/screenshots.py --logdir=runs

Runs Chromium or Chrome (Debian's package `chromium`) without a window. Writes `<output>/<tab>.png`. The tests do not
run this, because they require no browser.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

from mnist import Error
from mnist.cli import run
from mnist.settings import Setting, local_path

TABS = ("timeseries", "scalars", "images", "graphs", "distributions", "histograms", "text", "pr_curves", "projector")
TABS += ("hparams",)
SECONDS = 25  # for a tab to draw itself
QUIET = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--no-first-run", "--disable-background-networking"]
WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Screenshots:
    """The flags of this script."""

    logdir = Setting(None, "Folder of one or more runs.", kind=local_path)
    output = Setting("screenshots", "Folder for the PNG files.", kind=local_path)


@contextlib.contextmanager
def serve(logdir):
    """Runs a TensorBoard server while entered. Yields: its address, after it has read the event files."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--port=0", "--load_fast=false"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline, found = time.monotonic() + 60, None
            while not found:
                log.seek(0)
                text = log.read()
                if time.monotonic() > deadline or process.poll() is not None:
                    raise Error(f"TensorBoard did not start: {text.strip()[-300:]}")
                time.sleep(0.2)
                found = re.search(r"http://\S+", text)
            time.sleep(5)
            yield found[0]
        finally:
            process.terminate()
            process.wait()


def save(browser, url, path):
    """Saves a page as PNG."""
    with tempfile.TemporaryDirectory() as profile:
        # The Projector needs WebGL, but charts drawn with WebGL are missing in a picture.
        graphics = WEBGL if url.endswith("#projector") else ["--disable-gpu"]
        command = [browser, *QUIET, f"--user-data-dir={profile}", *graphics]
        command += ["--window-size=1400,1000", f"--timeout={1000 * SECONDS}", f"--virtual-time-budget={1000 * SECONDS}"]
        command += [f"--screenshot={os.path.abspath(path)}", url]
        subprocess.run(command, capture_output=True, timeout=120 + SECONDS)
    if not os.path.exists(path):
        raise Error(f"{browser} saved nothing of {url}.")


def main(options):
    if not options.logdir:
        raise Error("--logdir is missing: name the folder of one or more runs, as in --logdir=runs.")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise Error(f"there is no browser: none of {', '.join(BROWSERS)} is installed.")
    os.makedirs(options.output, exist_ok=True)
    with serve(options.logdir) as url:
        for tab in TABS:
            path = os.path.join(options.output, f"{tab}.png")
            save(browser, f"{url}#{tab}", path)
            print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    run(main, Screenshots)
