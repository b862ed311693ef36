"""The command mnist.evaluate: exact numbers, several runs, JSON, corrupted images, the reliability diagram, plots."""

import json
import re
import types

import mnist
from mnist import data, evaluate, finished
from mnist.loop import train_and_evaluate
from mnist.metrics import compute_metrics, robustness
from mnist.model import CNN
from mnist.settings import settings_of
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax
from sklearn.metrics import f1_score, precision_score, recall_score


def train(dataset, workdir, seed=0, steps=20):
    keras.utils.set_random_seed(seed)
    step = TrainStep(CNN(num_classes=len(dataset.classes)), keras.optimizers.Adam(1e-3), seed=seed)
    train_and_evaluate(step, dataset, str(workdir), max_steps=steps)
    return str(workdir)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """The folders of two runs of different lengths, with commas in their names."""
    folder = tmp_path_factory.mktemp("runs")
    return [train(digits, folder / f"rate=1,seed={seed}", seed, 20 + seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """The folder of a run with five classes. Two names are not ASCII, and the third class has no test image."""
    folder, random = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)
    arrays = {"y_train": np.arange(80) % 5, "y_test": np.array([0, 1, 3, 4] * 5)}
    arrays |= {f"x_{part}": random.integers(0, 256, (n, 28, 28), np.uint8) for part, n in (("train", 80), ("test", 20))}
    (folder / "data").mkdir()
    np.savez(folder / "data" / "own.npz", **arrays)
    (folder / "data" / "classes.txt").write_text("あ\nä\nnone\nb\nc", encoding="utf-8")
    return train(data.load("auto", str(folder / "data")), folder / "run", steps=2)


@pytest.fixture
def run(capfd):
    """A function `run(*workdirs, **settings)` that returns the output of mnist.evaluate."""

    def run(*workdirs, **settings):
        defaults = {name: setting.default for name, setting in settings_of(evaluate.Evaluate).items()}
        capfd.readouterr()
        evaluate.main(types.SimpleNamespace(**defaults | settings | {"workdir": workdirs}))
        return capfd.readouterr().out

    return run


def strict(text):
    """Parses one JSON value, without NaN and Infinity."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_json_holds_the_numbers_that_float64_gives_for_the_same_logits(run, runs, digits):
    found = strict(run(runs[0], json=True))
    images, labels = digits.test
    logits = np.float64(finished.load(runs[0]).model(np.float32(images / 255), training=False))
    log_probabilities, predictions = log_softmax(logits, axis=1), logits.argmax(axis=1)
    assert found["loss"] == pytest.approx(-np.mean(log_probabilities[np.arange(297), labels]), abs=1e-6)
    assert found["accuracy"] == np.mean(predictions == labels)
    assert found["accuracy_interval"][0] < found["accuracy"] < found["accuracy_interval"][1]
    assert (found["step"], found["images"], found["dataset"]) == (20, 297, "digits")
    gap = np.exp(log_probabilities.max(axis=1)) - (predictions == labels)
    bins = np.ceil(15 * np.exp(log_probabilities.max(axis=1)))
    assert found["ece"] == pytest.approx(sum(abs(gap[bins == n].sum()) for n in range(1, 16)) / 297, abs=1e-6)
    assert sum(found["calibration"]["count"]) == 297
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        expected = score(labels, predictions, average=None, zero_division=0)
        assert [row[name] for row in found["classes"]] == pytest.approx(expected)
    assert found["confusion_matrix"][8][1] == sum((labels == 8) & (predictions == 1))
    assert "robustness" not in found


def test_a_class_without_test_images_has_null_in_json(run, uneven):
    out = run(uneven, json=True)
    assert out.isascii()  # for terminals without UTF-8
    classes = strict(out)["classes"]
    assert [row["name"] for row in classes] == ["あ", "ä", "none", "b", "c"]
    assert classes[2] == {"name": "none", "precision": None, "recall": None, "f1": None, "images": 0}
    assert all(row["images"] == 5 and row["recall"] is not None for row in classes if row["name"] != "none")
    assert "without test images, in no average: none\n" in run(uneven)


def test_a_warning_names_runs_on_different_images(run, runs, uneven, caplog):
    run(*runs)
    assert caplog.messages == []
    run(runs[0], uneven)
    assert caplog.messages == [
        "These runs have different test images (digits, data): name one --data_dir or --dataset for all."
    ]


@pytest.mark.parametrize(("change", "share"), [(np.invert, "100%"), (np.zeros_like, "100%"), (np.copy, None)])
def test_a_warning_names_images_that_the_run_was_not_trained_on(run, runs, digits, tmp_path, caplog, change, share):
    np.savez(tmp_path / "other.npz", x_test=change(digits.test.images), y_test=digits.test.labels)
    run(runs[0], data_dir=str(tmp_path))
    assert [line.partition(" ")[0] for line in caplog.messages] == ([share] if share else [])


def test_own_metrics_are_computed_on_the_evaluated_data(run, runs, uneven, monkeypatch):
    def own_metrics(trained, images, labels, logits):
        assert (images.dtype, logits.dtype, type(logits)) == (np.uint8, np.float32, np.ndarray)
        assert (images.shape[1:], logits.shape) == ((28, 28, 1), (len(labels), len(trained.classes)))
        own = {"loss": compute_metrics(logits, labels)["loss"], "bad": np.float32("nan")}
        return own if trained.workdir == runs[0] else {}

    monkeypatch.setattr(finished.Run, "own_metrics", own_metrics)
    other = {"data_dir": uneven.removesuffix("run") + "data"}
    found = strict(run(runs[0], json=True, **other))
    assert found["images"] == 20
    assert found["own_metrics"] == {"loss": found["loss"], "bad": None}
    assert f"\nloss {found['loss']:.6g}\nbad nan\n" in run(runs[0], **other)
    first, second = run(*runs).splitlines()[1:]
    assert first.endswith("  nan")
    assert re.search("- +-$", second)


def test_nan_logits_are_null_in_json_and_the_diagram_is_drawn(run, runs, monkeypatch, tmp_path):
    load = finished.load

    def load_broken(*arguments):
        trained = load(*arguments)
        trained.model.logits.bias.assign([np.nan] * 10)
        return trained

    monkeypatch.setattr(finished, "load", load_broken)
    found = strict(run(runs[0], json=True, reliability=str(tmp_path / "a.png")))
    assert (found["loss"], found["ece"]) == (None, None)
    assert Image.open(tmp_path / "a.png").format == "PNG"


def test_each_corruption_gives_images_with_its_strength():
    images = np.zeros([2, 28, 28, 1], np.uint8)
    images[0, 10, 20] = 255
    versions = {str(row): [version(images) for version in row.versions] for row in robustness.CORRUPTIONS}
    for changed in (image for found in versions.values() for image in found):
        assert (changed.dtype, changed.shape) == (np.uint8, images.shape)
    for row in versions.keys() - {f"noise {n} of the range" for n in (0.1, 0.2, 0.4)}:
        assert not any(image[1].any() for image in versions[row]), row  # no image changes the next one
    places = [np.argwhere(image[0])[0][:2].tolist() for image in versions["shift 3 px"]]
    assert places == [[13, 20], [7, 20], [10, 23], [10, 17]]
    np.testing.assert_array_equal(versions["clean"][0], images)
    angle = np.arctan2(3.5, 6.5)  # from the centre to the dot, where rows count downwards
    for turned, degrees in zip(versions["rotation 30 degrees"], (30, -30), strict=True):
        row, column = np.average(np.argwhere(turned[0, ..., 0]), axis=0, weights=turned[0][turned[0] > 0])
        assert np.arctan2(13.5 - row, column - 13.5) == pytest.approx(angle + np.radians(degrees), abs=0.03)
    for sigma in (1, 1.5):
        blurred = versions[f"blur {sigma} px"][0][0, :, 20, 0] / 255
        np.testing.assert_allclose(blurred[11] / blurred[10], np.exp(-1 / (2 * sigma**2)), atol=0.03)


def test_robustness_is_the_mean_of_the_directions(run, runs, digits):
    rows = strict(run(runs[0], json=True, robustness=True))["robustness"]
    whole = strict(run(runs[0], json=True))
    assert rows[0] == {"corruption": "clean", "size": 0, "unit": ""} | {n: whole[n] for n in ("loss", "accuracy")}
    model, accuracies = finished.load(runs[0]).model, []
    for rows_down, columns_right in ((2, 0), (-2, 0), (0, 2), (0, -2)):
        moved = np.roll(digits.test.images, (rows_down, columns_right), (1, 2)) / 255  # the frame of digits is black
        accuracies.append(np.mean(np.argmax(model(np.float32(moved), training=False), axis=1) == digits.test.labels))
    assert (rows[2]["corruption"], rows[2]["size"]) == ("shift", 2)
    assert rows[2]["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-9)


def test_plots_show_one_run_or_the_curves_of_several(run, runs, tmp_path):
    out = run(runs[0], plots=str(tmp_path / "one"))
    names = {"curves", "examples", "mistakes", "confusion_matrix", "accuracies", "filters"}
    assert {path.stem for path in (tmp_path / "one").iterdir()} == names
    assert {path.suffix for path in (tmp_path / "one").iterdir()} == {".png"}
    assert {f"wrote {path}" for path in (tmp_path / "one").iterdir()} == set(out.splitlines()[-6:])
    found = strict(run(*runs, json=True, plots=str(tmp_path / "several")))  # prints nothing but JSON
    assert len(found) == 2
    assert [path.name for path in (tmp_path / "several").iterdir()] == ["curves_of_all.png"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(mnist.Error, match=r"^cannot write to .*file: "):
        run(runs[0], plots=str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
