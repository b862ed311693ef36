"""The bar on a terminal and the lines in a log."""

import os

from mnist.cli import Progress, in_short
from mnist.run import Plan

import pytest

MEANS = {"accuracy": 0.5, "loss": 1.0, "gradient_norm": 2.0, "noise": 3.0}


@pytest.fixture
def bar(monkeypatch, capsys):
    """Draws the bar after step 10 of 20, on a terminal of some columns. Returns: what is printed."""

    def draw(columns, means=MEANS, rate=1.0):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
        progress = Progress(Plan(640, epochs=2))
        progress.update(10, means, 640.0, rate)
        progress.say("saved")
        shown, said = capsys.readouterr().out.split("\r")[1:]
        assert said == "\x1b[Ksaved\n"
        assert shown.endswith("\x1b[K")
        return shown.removesuffix("\x1b[K")

    return draw


@pytest.mark.parametrize(("rate", "left"), [(10 / 59.7, "1:00"), (10 / 59.2, "0:59"), (10 / 3661, "61:01")])
def test_the_bar_moves_on_one_line_and_tells_what_is_left(rate, left, bar):
    shown = bar(120, {"accuracy": 0.5, "loss": 1.0}, rate)
    assert shown == f"[{'=' * 20}] epoch 1/2 step 10/20 loss 1.0000 accuracy 0.5000 640 images/s {left} left"


@pytest.mark.parametrize("columns", [200, 120, 100, 80, 60, 40, 20, 10, 3])
def test_the_bar_fits_the_terminal_and_drops_the_least_first(columns, bar):
    shown = bar(columns)
    assert len(shown) < columns
    names = ["noise", "gradient_norm", "images/s", "step", "left", "epoch", "accuracy", "loss"]
    there = [name in shown for name in names]
    assert there == sorted(there), shown
    assert there[-1] == (columns >= 10)
    if columns >= 80:
        assert all(name in shown for name in ("loss", "accuracy", "epoch", "left", "[="))


def test_a_small_number_is_not_shown_as_nothing():
    numbers = (0.12345, 1e-3, 1.35e-5, -2.5e-7, 0.0, float("nan"))
    assert [in_short(number) for number in numbers] == ["0.1235", "0.0010", "1.35e-05", "-2.5e-07", "0.0000", "nan"]


def test_what_follows_the_bar_is_on_a_line_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    progress = Progress(Plan(640, epochs=2))
    progress.update(10, MEANS, 640.0, 1.0)
    progress.close()
    progress.close()
    print("stopped")
    assert capsys.readouterr().out.endswith("\x1b[K\nstopped\n")
