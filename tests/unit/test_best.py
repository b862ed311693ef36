"""A run keeps its best evaluation, and commands load it. A run begins with the weights of another."""

import json

from mnist import Error, checkpoint, data, finished
from mnist.checkpoint import Best
from mnist.loop import Interrupted, train_and_evaluate
from mnist.metrics import compute_metrics, softmax
from mnist.model import make_predict_logits
from mnist.predict import read_image
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import StopAfter, make_linear
from PIL import Image


def train(workdir, dataset, cls=TrainStep, **options):
    keras.utils.set_random_seed(0)
    step = cls(make_linear(), keras.optimizers.SGD(8.0), seed=0)  # a rate that goes up and down
    return train_and_evaluate(step, dataset, str(workdir), **({"epochs": 2, "eval_every": 5} | options))


def best_steps(workdir):
    return checkpoint.steps(str(workdir / "checkpoints" / "best"))


def lose_checkpoints(workdir, first=0):
    """Deletes the checkpoints from step `first` on, as if the run had been killed before them. Keeps the best."""
    for path in (workdir / "checkpoints").glob("ckpt-*"):
        if int(path.stem.partition("-")[2]) >= first:
            path.unlink()
    (workdir / "checkpoints" / "checkpoint").unlink()


def measure(run, examples):
    return compute_metrics(make_predict_logits(run.model)(examples.images).numpy(), examples.labels)


@pytest.fixture(scope="module")
def held():
    return data.load("digits", holdout=297)


@pytest.fixture(scope="module")
def kept(held, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("kept")
    return workdir, train(workdir, held, keep_best="max:validation_accuracy", keep_checkpoints=1, max_steps=25)


def test_the_best_is_kept_and_results_hold_it_beside_the_last(kept, held):
    workdir, results = kept
    history = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    best = max(history, key=lambda entry: entry["validation_accuracy"])  # the first of equals
    assert 0 < best["step"] < results["steps"], "the run ends with its best: this test shows nothing"
    assert results["best_step"] == best["step"]
    assert results["best_validation_accuracy"] == best["validation_accuracy"]
    assert results["validation_accuracy"] == history[-1]["validation_accuracy"]
    assert checkpoint.steps(str(workdir / "checkpoints")) == [results["steps"]]
    for which, prefix in (("best", "best_"), (best["step"], "best_"), ("newest", ""), (str(results["steps"]), "")):
        run = finished.load(str(workdir), which)
        for part, examples in (("validation", held.validation), ("test", held.test)):
            metrics = measure(run, examples)
            assert metrics["accuracy"] == results[f"{prefix}{part}_accuracy"], (which, part)
            assert metrics["loss"] == pytest.approx(results[f"{prefix}{part}_loss"], rel=1e-6)


def test_a_run_that_is_stopped_keeps_the_same_best(kept, held, tmp_path):
    options = {"keep_best": "max:validation_accuracy", "keep_checkpoints": 1, "checkpoint_every": 7, "max_steps": 25}
    for stop in (4, 6, 3):
        with pytest.raises(Interrupted):
            train(tmp_path, held, interrupt=StopAfter(stop), steps_per_loop=3, **options)
    results = train(tmp_path, held, **options)
    for name in [name for name in kept[1] if name.startswith("best_")]:
        assert results[name] == kept[1][name], name
    tensors = [checkpoint.load_newest(str(folder / "checkpoints" / "best"))[0] for folder in (tmp_path, kept[0])]
    for name in tensors[0]:
        np.testing.assert_array_equal(tensors[0][name], tensors[1][name], err_msg=name)


def test_a_new_run_removes_the_best_of_another(held, tmp_path):
    """The other run was killed after a better evaluation, before its first checkpoint."""
    options = {"keep_best": "validation_loss", "checkpoint_every": 1000}
    train(tmp_path, held, max_steps=38, **options)
    lose_checkpoints(tmp_path)
    (tmp_path / "results.json").unlink()
    results = train(tmp_path, held, max_steps=10, **options)
    assert best_steps(tmp_path) == [results["best_step"]] != [38]


def test_a_best_that_the_run_has_yet_to_reach_does_not_count(held, tmp_path):
    options = {"keep_best": "max:validation_accuracy", "checkpoint_every": 7, "max_steps": 25}
    with pytest.raises(Interrupted):
        train(tmp_path, held, interrupt=StopAfter(5), steps_per_loop=3, **options)
    lose_checkpoints(tmp_path, first=best_steps(tmp_path)[0])
    results = train(tmp_path, held, **options | {"eval_every": 4})  # another step may be the best then
    run = finished.load(str(tmp_path), "best")
    assert run.step == results["best_step"]
    assert measure(run, held.validation)["accuracy"] == results["best_validation_accuracy"]


def test_a_missing_checkpoint_is_refused(kept):
    workdir, results = kept
    with pytest.raises(Error, match=f"--checkpoint=7: .* has newest, best, .*{results['steps']}"):
        finished.load(str(workdir), 7)


def test_the_best_by_another_metric_is_refused(held, tmp_path):
    workdir = str(tmp_path)
    train(tmp_path, held, max_steps=10, keep_best="max:validation_loss")  # the rate is so high that it rises at first
    (first,) = best_steps(tmp_path)
    assert finished.load(workdir, "best").step == first
    results = train(tmp_path, held, max_steps=11, keep_best="validation_loss")
    assert "best_step" not in results, "it has a new best: this test shows nothing"
    with pytest.raises(Error, match=rf"was at step 0, whose weights are not there, but those of step {first}\."):
        finished.load(workdir, "best")
    train(tmp_path, held, max_steps=12)
    with pytest.raises(Error, match=rf"without --keep_best; --checkpoint={first} is one that it kept before\.$"):
        finished.load(workdir, "best")
    assert finished.load(workdir, first).step == first
    results = train(tmp_path, held, max_steps=30, keep_best="max:validation_accuracy")
    assert finished.load(workdir, "best").step == results["best_step"] > 12


def test_every_command_loads_the_checkpoint_that_it_names(kept, tmp_path, start):
    workdir, results = kept
    done = start("mnist.evaluate", f"--workdir={workdir}", "--checkpoint=best", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["step"], found["accuracy"]) == (results["best_step"], results["best_test_accuracy"])
    best, newest = (finished.load(str(workdir), which).model for which in ("best", "newest"))
    image = np.zeros([28, 28], np.uint8)
    image[4:24, 13:16] = 255
    Image.fromarray(image).save(tmp_path / "one.png")
    for which, model in (("best", best), ("newest", newest)):
        flags = (f"--workdir={workdir}", f"--checkpoint={which}")
        (answer,) = json.loads(start("mnist.predict", *flags, "--json", "one.png", cwd=tmp_path).stdout)
        shares = softmax(make_predict_logits(model)(read_image(tmp_path / "one.png")[np.newaxis]).numpy())[0]
        assert (answer["digit"], answer["probability"]) == (shares.argmax(), pytest.approx(shares.max(), abs=1e-4))
        done = start("mnist.export", *flags, "--format=keras", f"--output={which}.keras", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        exported = keras.models.load_model(tmp_path / f"{which}.keras")
        for variable, value in zip(exported.variables[-2:], model.variables, strict=True):  # after its table of greys
            np.testing.assert_array_equal(variable, value)


class Seeing(TrainStep):
    def __init__(self, model, optimizer, **kwargs):
        super().__init__(model, optimizer, **kwargs)
        self.seen = tf.Variable(0.0)

    def apply_gradients(self, gradients):
        super().apply_gradients(gradients)
        self.seen.assign_add(1.0)

    def extra_metrics(self, images, labels, logits):
        return {"seen": float(self.seen)}


def test_own_metrics_of_the_best_use_the_variables_of_its_step(held, tmp_path):
    results = train(tmp_path, held, Seeing, keep_best="validation_loss", max_steps=12)
    assert results["best_step"] < results["steps"], "the run ends with its best: this test shows nothing"
    assert results["best_test_seen"] == results["best_validation_seen"] == results["best_step"]
    assert results["test_seen"] == results["steps"]


def test_nan_is_never_the_best(tmp_path):
    history, found = [], []
    best = Best(str(tmp_path), "validation_recall", True, history)
    for step, recall in enumerate([np.nan, 0.5, np.nan, 0.4, 0.6]):
        entry = {"step": step, "validation_recall": recall}
        found.append(best.is_better(entry))
        history.append(entry)
    assert found == [False, True, False, False, True]
    assert best.step == 4


def test_a_run_begins_with_the_weights_of_another(tmp_path, start):
    def run(name, *flags):
        return start("mnist.train", "--dataset=digits", "--steps_per_loop=5", f"--workdir={name}", *flags, cwd=tmp_path)

    assert run("first", "--max_steps=20").returncode == 0
    done = run("second", "--max_steps=5", "--init_from=first", "--seed=1")
    assert done.returncode == 0, done.stderr
    first, second = (finished.load(str(tmp_path / name)) for name in ("first", "second"))
    assert second.history[0]["validation_loss"] == first.history[-1]["validation_loss"]
    assert second.history[0]["step"] == 0
    (tmp_path / "first").rename(tmp_path / "moved")  # a resume has its own weights
    assert start("mnist.train", "--workdir=second", "--max_steps=8", cwd=tmp_path).returncode == 0
    refused = start("mnist.train", "--workdir=second", "--init_from=moved", "--max_steps=9", cwd=tmp_path)
    assert refused.returncode == 1
    assert "--init_from was first, is moved" in refused.stderr
    wide = ("--dataset=digits", "--width=1", "--max_steps=1", "--workdir=wide")
    assert start("mnist.research.wide", *wide, cwd=tmp_path).returncode == 0
    done = run("other", "--max_steps=1", "--init_from=wide")
    assert "--init_from=wide: its weights fit, but are of a WideCNN; this is a CNN." in done.stderr
    nowhere = run("third", "--init_from=first")
    assert nowhere.returncode == 1
    assert nowhere.stderr.splitlines()[-1].startswith("error: --init_from=first: first is not a folder")


@pytest.mark.parametrize("count", [3, 12])
def test_weights_for_other_classes_are_refused_by_the_number_of_classes(digits, tmp_path, count):
    train(tmp_path, digits, max_steps=1)
    model = keras.Sequential([keras.Input([28, 28, 1]), keras.layers.Flatten(), keras.layers.Dense(count)])
    few = data.Examples(digits.train.images[:count], np.arange(count))
    others = data.Dataset("others", None, few, few, few, tuple(map(str, range(count))))
    with pytest.raises(Error, match=f"was trained with 10 classes, but others has {count}: its weights do not fit"):
        finished.take_weights(model, str(tmp_path), others)
