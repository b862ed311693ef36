"""The bar on a terminal and the lines in a log."""

from mnist.progress import Progress

import pytest


@pytest.mark.parametrize(("rate", "left"), [(10 / 59.7, "1:00"), (10 / 59.2, "0:59"), (10 / 3661, "61:01")])
def test_the_bar_moves_on_one_line_and_tells_what_is_left(rate, left, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    progress = Progress(last_step=20, steps_per_epoch=10)
    progress.update(10, {"accuracy": 0.5, "loss": 1.0}, 640.0, rate)
    progress.say("saved")
    bar, said = capsys.readouterr().out.split("\r")[1:]
    assert bar == f"[{'=' * 20}] epoch 1/2 step 10/20 loss 1.0000 accuracy 0.5000 640 images/s {left} left\x1b[K"
    assert said == "\x1b[Ksaved\n"
