"""Pictures of a run: as PNG files, and as a notebook shows them."""

import mnist
from mnist import data, pictures
from mnist.data import Examples
from mnist.pictures import save_pictures

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
    paths = save_pictures(*make_run(num_examples, num_entries), str(tmp_path / "new" / "plots"))
    names = ["confusion_matrix.png", "curves.png", "predictions.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "plots").iterdir()) == names
    assert len(paths) == 3
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert all(100 <= side <= 2000 for side in image.size)
            low, high = image.convert("L").getextrema()  # something is drawn, on white
            assert low < 100 < high


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "plots").write_text("mine")
    with pytest.raises(mnist.Error, match="cannot write"):
        save_pictures(*make_run(3), str(tmp_path / "plots"))
    assert (tmp_path / "plots").read_text() == "mine"


def test_drawn_labels_belong_to_their_images():
    test = data.load("digits").test
    predictions = test.labels.astype(int)
    right = np.asarray(pictures.draw_predictions(test, predictions))
    predictions[3] = (predictions[3] + 1) % 10
    wrong = np.asarray(pictures.draw_predictions(test, predictions))
    rows, columns = np.nonzero((right != wrong).any(axis=2))
    assert rows.max() < 20  # the caption of the fourth cell in the first row
    assert columns.min() >= 3 * 84
    assert columns.max() < 4 * 84


def test_a_notebook_shows_a_picture_as_one():
    history, examples, predictions = make_run(30)
    matrix = np.eye(10, dtype=int)
    drawn = [pictures.draw_curves(history), pictures.draw_predictions(examples, predictions)]
    for picture in [*drawn, pictures.draw_confusions(matrix)]:
        assert picture._repr_png_().startswith(b"\x89PNG")  # what IPython asks a cell's value for
