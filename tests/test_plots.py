"""Figures of a run: three sound PNG files."""

import mnist
from mnist.data import Examples
from mnist.plots import plot_run

import numpy as np
import pytest
from PIL import Image


def make_run(num_examples, num_entries=3):
    """A history, examples and predictions, some of them wrong."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (num_examples, 28, 28, 1), np.uint8)
    labels = random.integers(0, 10, num_examples, np.uint8)
    predictions = np.where(random.random(num_examples) < 0.8, labels, (labels + 1) % 10)
    names = [f"{part}_{metric}" for part in ("train", "validation") for metric in ("loss", "accuracy")]
    history = [{"step": 10 * (i + 1)} | dict.fromkeys(names, 1 / (i + 1)) for i in range(num_entries)]
    return history, Examples(images, labels), predictions


@pytest.mark.parametrize(("num_examples", "num_entries"), [(100, 3), (25, 1), (3, 2), (1, 0)])
def test_writes_three_images(tmp_path, num_examples, num_entries):
    paths = plot_run(*make_run(num_examples, num_entries), str(tmp_path / "new" / "plots"))
    names = ["confusion_matrix.png", "curves.png", "predictions.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "plots").iterdir()) == names
    assert len(paths) == 3
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert all(400 <= side <= 2000 for side in image.size)
            low, high = image.convert("L").getextrema()  # something is drawn, on white
            assert low < 100 < high


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "plots").write_text("mine")
    with pytest.raises(mnist.Error, match="cannot write"):
        plot_run(*make_run(3), str(tmp_path / "plots"))
    assert (tmp_path / "plots").read_text() == "mine"
