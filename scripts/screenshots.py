"""Saves what each tab of TensorBoard shows in a real browser: python scripts/screenshots.py --logdir=runs

Drives Chromium, or Chrome, without a window (Debian's package `chromium`). No test runs this: a browser is no
requirement. Look at what it saves, `<output>/<tab>.png`.
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

TABS = {
    "time_series": "timeseries",
    "scalars": "scalars",
    "images": "images",
    "graphs": "graphs",
    "distributions": "distributions",
    "histograms": "histograms",
    "text": "text",
    "pr_curves": "pr_curves",
    "projector": "projector",
    "hparams": "hparams",
}
QUIET = (
    *("--headless=new", "--no-sandbox", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Screenshots:
    """What is shown, and where the pictures go."""

    logdir = Setting(None, "Folder of one or more runs.", kind=local_path)
    output = Setting("screenshots", "Folder for the PNG files.", kind=local_path)
    tabs = Setting(None, "Tabs to open, comma-separated. Default: all.", kind=str)
    width = Setting(1400, "Width of the window, pixels.", low=400)
    height = Setting(1000, "Height of the window, pixels.", low=300)
    seconds = Setting(25, "Seconds that a tab has to draw itself.", low=1)


@contextlib.contextmanager
def serve(logdir):
    """A TensorBoard server on a free port: its address, as soon as it has read the event files."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--port=0", "--load_fast=false"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline, found = time.monotonic() + 60, None
            while not found:
                if time.monotonic() > deadline or process.poll() is not None:
                    log.seek(0)
                    raise Error(f"TensorBoard did not start: {log.read().strip()[-300:]}")
                time.sleep(0.2)
                log.seek(0)
                found = re.search(r"http://\S+", log.read())
            time.sleep(5)
            yield found[0]
        finally:
            process.terminate()
            process.wait()


def save(browser, url, path, options):
    """Saves what a page shows as PNG."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *(browser, *QUIET, f"--user-data-dir={profile}"),
            # The Projector needs WebGL; charts that are drawn with it are missing in a picture.
            *(WEBGL if url.endswith("#projector") else ("--disable-gpu",)),
            *(f"--window-size={options.width},{options.height}", f"--timeout={1000 * options.seconds}"),
            *(f"--virtual-time-budget={1000 * options.seconds}", f"--screenshot={os.path.abspath(path)}", url),
        ]
        subprocess.run(command, capture_output=True, timeout=120 + options.seconds)
    if not os.path.exists(path):
        raise Error(f"{browser} saved nothing of {url}.")


def main(options):
    if not options.logdir:
        raise Error("--logdir is missing: name the folder of one or more runs, as in --logdir=runs.")
    tabs = options.tabs.split(",") if options.tabs else list(TABS)
    if unknown := [tab for tab in tabs if tab not in TABS]:
        raise Error(f"--tabs has {unknown[0]!r}, expected some of {', '.join(TABS)}.")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise Error(f"there is no browser: none of {', '.join(BROWSERS)} is installed.")
    os.makedirs(options.output, exist_ok=True)
    with serve(options.logdir) as url:
        for tab in tabs:
            path = os.path.join(options.output, f"{tab}.png")
            save(browser, f"{url}#{TABS[tab]}", path, options)
            print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    run(main, Screenshots)
