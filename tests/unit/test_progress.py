"""The progress bar on a terminal."""

import os

from mnist.cli import Progress
from mnist.run import Plan

import pytest

MEANS = {"accuracy": 0.5, "loss": 1.0, "gradient_norm": 2.0, "noise": 3.0}


@pytest.fixture
def bar(monkeypatch, capsys):
    """Returns a function that draws the bar after step 10 of 20 on a terminal, and returns its text."""

    def draw(columns, means=MEANS, rate=1.0):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
        progress = Progress(Plan(640, epochs=2))
        progress.update(10, means, 640.0, rate)
        progress.say("saved")
        progress.update(10, means, 640.0, rate)
        progress.close()
        progress.close()
        print("stopped")
        first, line, second = capsys.readouterr().out.split("\r")[1:]
        assert line == "\x1b[Ksaved\n"  # in place of the bar
        assert second == f"{first}\nstopped\n"  # below the bar
        return first.removesuffix("\x1b[K")

    return draw


@pytest.mark.parametrize("columns", [200, 120, 100, 80, 60, 40, 20, 10, 3])
def test_the_bar_fits_the_terminal_and_drops_the_least_important_fields(columns, bar):
    shown = bar(columns)
    assert len(shown) < columns
    names = ["noise", "gradient_norm", "images/s", "step", "left", "epoch", "accuracy", "loss"]
    found = [name in shown for name in names]
    assert found == sorted(found), shown
    assert found[-1] == (columns >= 10)
    if columns >= 80:
        assert all(name in shown for name in ("loss", "accuracy", "epoch", "left", "[="))
