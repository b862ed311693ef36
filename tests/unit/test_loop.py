"""Whole runs in this process: the files that they write, exact resumes and refusals."""

import json

from mnist import Error, checkpoint, data
from mnist.loop import Interrupted, train_and_evaluate
from mnist.machine import num_threads
from mnist.model import CNN
from mnist.run import OF_THE_HOUR, provenance
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import StopAfter, bits_of, make_linear
from tensorflow.tsl.profiler.protobuf import xplane_pb2


def train(workdir, dataset, cls=TrainStep, seed=0, optimizer=keras.optimizers.Adam, model=make_linear, **options):
    """Trains two epochs by default. Returns: the step and the results, None if the run was interrupted."""
    keras.utils.set_random_seed(seed)
    step = cls(model(), optimizer(), seed=seed)
    try:
        return step, train_and_evaluate(step, dataset, str(workdir), **({"epochs": 2} | options))
    except Interrupted:
        return step, None


def without_times(results):
    return {k: v for k, v in results.items() if k not in OF_THE_HOUR}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, *train(workdir, digits, steps_per_loop=7)


def test_results_hold_the_documented_keys(undisturbed, digits):
    workdir, _, results = undisturbed
    keys = {"dataset", "parameters", "seed", "epochs", "steps", "batch_size", "train_seconds", "images_per_second"}
    keys |= {"dataset_sha256", "dataset_validation_sha256", "dataset_test_sha256", "portable"}
    keys |= {f"{part}_{metric}" for part in ("train", "validation", "test") for metric in ("loss", "accuracy")}
    assert results.keys() == keys | {*provenance.KEYS, *data.inspect(digits).counts}
    assert json.loads((workdir / "results.json").read_text()) == results
    assert (results["dataset"], results["parameters"], results["steps"]) == ("digits", 7_850, 48)
    assert results["images_per_second"] == pytest.approx(3000 / results["train_seconds"])
    right = results["test_accuracy"] * len(digits.test.labels)
    assert right == pytest.approx(round(right))


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([{"steps_per_loop": 100}], id="other loop length"),
        pytest.param([{"stop": 1}, {"stop": 4}, {}], id="stopped twice"),
        pytest.param([{"epochs": 1}, {}], id="epochs raised"),
    ],
)
def test_a_run_has_the_same_bits_however_it_is_stopped(undisturbed, digits, tmp_path, calls):
    _, step, results = undisturbed
    for options in calls:
        interrupt = StopAfter(options.get("stop", 999))
        options = {"steps_per_loop": 7} | {k: v for k, v in options.items() if k != "stop"}
        again, results_again = train(tmp_path, digits, interrupt=interrupt, **options)
        assert (results_again is None) == (interrupt.n < 0)
    assert bits_of(again) == bits_of(step)
    assert without_times(results_again) == without_times(results)


def test_checkpoints_are_written_when_due_and_old_ones_deleted(digits, tmp_path):
    train(tmp_path, digits, checkpoint_every=10, keep_checkpoints=2)
    assert checkpoint.steps(str(tmp_path / "checkpoints")) == [48, 40]
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-48")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 32}, "batch_size was 64, is 32"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"optimizer": lambda: keras.optimizers.Adam(0.01)}, "optimizer.learning_rate"),
        ({"cls": type("Other", (TrainStep,), {})}, "step was TrainStep, is Other"),
        ({"jit_compile": True}, "jit_compile was False, is True"),
        ({"resume": False}, "holds a run already"),
        ({"epochs": 1}, "beyond the last step 24"),
    ],
)
def test_a_resume_that_would_change_the_numbers_is_refused(undisturbed, digits, change, named):
    workdir, _, _ = undisturbed
    before = (workdir / "results.json").read_bytes()
    with pytest.raises(Error, match=named.replace(".", r"\.")):
        train(workdir, digits, **change)
    assert (workdir / "results.json").read_bytes() == before


def test_other_data_and_threads_are_refused(undisturbed, digits, monkeypatch):
    workdir, _, _ = undisturbed
    images = digits.train.images.copy()
    images[0, 0, 0, 0] ^= 1
    other_images = digits._replace(train=digits.train._replace(images=images))
    other_tests = digits._replace(test=digits.test._replace(labels=digits.test.labels[::-1]))
    held = data.load("digits", holdout=100)
    for dataset, message in (
        (other_images, r"the data was digits \(1,500 .*is digits \(1,500 .* of other content"),
        (other_tests, "of other content"),
        (held, r"is digits \(1,400 training, 100 validation and 297 test images"),
    ):
        with pytest.raises(Error, match=message):
            train(workdir, dataset)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", str(num_threads() + 1))
    with pytest.raises(Error, match=rf"intra_op_threads was \d+, is {num_threads()}"):
        train(workdir, digits)


def test_a_new_run_refuses_a_step_that_has_trained_already(undisturbed, digits, tmp_path):
    with pytest.raises(Error, match=r"the step has trained already \(updates: 48\)"):
        train_and_evaluate(undisturbed[1], digits, str(tmp_path), epochs=1)


def test_a_new_patience_that_ends_a_run_within_an_epoch_evaluates_its_weights(tmp_path):
    held = data.load("digits", holdout=300)  # 19 steps an epoch

    class Worse(TrainStep):
        def apply_gradients(self, gradients):
            super().apply_gradients([-g for g in gradients])

    train(tmp_path, held, cls=Worse, epochs=9, interrupt=StopAfter(8), steps_per_loop=7)
    before = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    _, results = train(tmp_path, held, cls=Worse, epochs=9, early_stopping_patience=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert before[-1] < results["steps"] == lines[-1]["step"]
    assert results["validation_loss"] == lines[-1]["validation_loss"] != lines[-2]["validation_loss"]


def count_steps(workdir):
    """Returns the number of steps in each profile of a run, the oldest first."""
    counts = []
    for path in sorted(workdir.glob("train/plugins/profile/*/*.xplane.pb")):
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
        names = [p.event_metadata[e.metadata_id].name for p in space.planes for line in p.lines for e in line.events]
        counts.append(names.count("IteratorGetNextOp::DoCompute"))
    return counts


def test_a_profile_changes_no_bit_and_a_stopped_run_keeps_it_and_profiles_the_rest(undisturbed, digits, tmp_path):
    options = {"profile": "5:20", "steps_per_loop": 7}  # the loops end at 4, 11 and 18
    train(tmp_path, digits, interrupt=StopAfter(3), **options)
    assert count_steps(tmp_path) == [14]
    step, _ = train(tmp_path, digits, **options)
    assert sum(count_steps(tmp_path)) == 16
    assert bits_of(step) == bits_of(undisturbed[1])


class NanLoss(TrainStep):
    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        return tf.where(self.iterations == 29, np.nan, loss), logits


class NanWeights(TrainStep):
    def apply_gradients(self, gradients):
        last = self.iterations == 9
        super().apply_gradients([tf.where(last, np.nan, g) for g in gradients])


@pytest.mark.parametrize(
    ("options", "message", "saved"),
    [
        ({"cls": NanLoss}, "loss is nan at step 30; ckpt-24 is the last good checkpoint", [24]),
        ({"cls": NanWeights, "checkpoint_every": 5, "steps_per_loop": 5}, "at step 10; ckpt-5 is the last", [5]),
        ({"model": CNN, "optimizer": lambda: keras.optimizers.SGD(1e6)}, "at step .*; no checkpoint was saved", []),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run_and_are_not_saved(digits, tmp_path, options, message, saved):
    with pytest.raises(Error, match=message):
        train(tmp_path, digits, **options)
    assert checkpoint.steps(str(tmp_path / "checkpoints")) == saved
    assert not (tmp_path / "results.json").exists()
