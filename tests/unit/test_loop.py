"""Whole runs in this process: what is written, what is resumed, what is refused."""

import functools
import json
import os
import time

from mnist import Error, checkpoint, data, files
from mnist.loop import Interrupted, train_and_evaluate
from mnist.machine import num_threads
from mnist.model import CNN
from mnist.run import OF_THE_HOUR, provenance
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import StopAfter


def make_small():
    """A network that takes little time, for what does not depend on it."""
    return keras.Sequential([keras.Input([28, 28, 1]), keras.layers.Flatten(), keras.layers.Dense(10)])


def train(workdir, dataset, cls=TrainStep, seed=0, optimizer=keras.optimizers.Adam, model=make_small, **options):
    """A run of two epochs unless told otherwise. Returns: its step and its results."""
    keras.utils.set_random_seed(seed)
    step = cls(model(), optimizer(), seed=seed)
    return step, train_and_evaluate(step, dataset, str(workdir), **({"epochs": 2} | options))


def state_of(step):
    return {name: variable.numpy().tobytes() for name, variable in checkpoint.variables_of(step).items()}


def without_times(results):
    return {k: v for k, v in results.items() if k not in OF_THE_HOUR}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, *train(workdir, digits, steps_per_loop=7)


def test_results_hold_the_documented_keys(undisturbed, digits):
    workdir, _, results = undisturbed
    keys = {"dataset", "parameters", "seed", "epochs", "steps", "batch_size", "train_seconds", "images_per_second"}
    keys |= {f"{part}_{metric}" for part in ("train", "validation", "test") for metric in ("loss", "accuracy")}
    assert results.keys() == keys | set(provenance.KEYS)
    assert json.loads((workdir / "results.json").read_text()) == results
    assert (results["dataset"], results["parameters"], results["steps"]) == ("digits", 7_850, 48)
    assert results["images_per_second"] == pytest.approx(3000 / results["train_seconds"])
    assert results["test_accuracy"] * len(digits.test.labels) == pytest.approx(
        round(results["test_accuracy"] * len(digits.test.labels))
    )


def test_two_runs_agree_in_every_bit_whatever_the_loop_length(undisturbed, digits, tmp_path):
    _, step, results = undisturbed
    again, results_again = train(tmp_path, digits, steps_per_loop=100)
    assert state_of(again) == state_of(step)
    assert without_times(results_again) == without_times(results)


@pytest.mark.parametrize("stops", [[3], [1, 2], [5]])
def test_an_interrupted_run_goes_on_to_the_same_bits(undisturbed, digits, tmp_path, stops):
    _, step, results = undisturbed
    for n in stops:
        with pytest.raises(Interrupted):
            train(tmp_path, digits, steps_per_loop=7, interrupt=StopAfter(n))
    resumed, results_resumed = train(tmp_path, digits, steps_per_loop=7)
    assert state_of(resumed) == state_of(step)
    assert without_times(results_resumed) == without_times(results)


def test_epochs_may_be_raised(undisturbed, digits, tmp_path):
    _, step, results = undisturbed
    train(tmp_path, digits, epochs=1)
    longer, results_longer = train(tmp_path, digits, epochs=2)
    assert state_of(longer) == state_of(step)
    assert without_times(results_longer) == without_times(results)


def test_a_finished_run_is_left_as_it_is(undisturbed, digits):
    workdir, step, results = undisturbed
    again, results_again = train(workdir, digits)
    assert results_again == results
    assert state_of(again) == state_of(step)


def test_max_steps_ends_within_an_epoch_with_an_evaluation_and_a_checkpoint(digits, tmp_path):
    _, results = train(tmp_path, digits, max_steps=10)
    assert results["steps"] == 10
    assert (tmp_path / "checkpoints" / "ckpt-10.index").exists()


def test_checkpoints_are_written_when_asked_and_old_ones_go(digits, tmp_path):
    train(tmp_path, digits, checkpoint_every=10, keep_checkpoints=2, steps_per_loop=100)
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("*.index"))
    assert names == ["ckpt-40.index", "ckpt-48.index"]
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-48")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 32}, "batch_size was 64, is 32"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"optimizer": lambda: keras.optimizers.SGD()}, "optimizer.class was Adam, is SGD"),
        ({"optimizer": lambda: keras.optimizers.Adam(0.01)}, "optimizer.learning_rate"),
        ({"cls": type("Other", (TrainStep,), {})}, "step was TrainStep, is Other"),
        ({"jit_compile": True}, "jit_compile was False, is True"),
        ({"settings": {"rho": 0.1}}, "rho was None, is 0.1"),
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


def test_other_data_and_other_precision_are_refused(undisturbed, digits):
    workdir, _, _ = undisturbed
    images = digits.train.images.copy()
    images[0, 0, 0, 0] ^= 1
    with pytest.raises(Error, match=r"the data was digits \(1,500 .*is digits \(1,500 .* of other content"):
        train(workdir, digits._replace(train=digits.train._replace(images=images)))
    held = digits._replace(test=digits.test._replace(labels=digits.test.labels[::-1]))
    with pytest.raises(Error, match="of other content"):
        train(workdir, held)
    with pytest.raises(Error, match=r"is digits \(1,400 training, 100 validation and 297 test images"):
        train(workdir, data.load("digits", holdout=100))
    step = TrainStep(CNN(dtype="mixed_bfloat16"), keras.optimizers.Adam())
    with pytest.raises(Error, match="precision was float32, is mixed_bfloat16"):
        train_and_evaluate(step, digits, str(workdir), epochs=2)


def test_another_number_of_threads_is_refused_however_it_is_set(undisturbed, digits, monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", str(num_threads() + 1))
    with pytest.raises(Error, match=rf"intra_op_threads was \d+, is {num_threads()}"):
        train(undisturbed[0], digits)


def test_another_hyperparameter_of_the_step_is_refused(digits, tmp_path):
    class Scaled(TrainStep):
        def __init__(self, *args, scale, **kwargs):
            super().__init__(*args, **kwargs)
            self.scales, self.pair = {"a": [scale], "b": (1, 2)}, (tf.Variable(scale), tf.Variable(scale))
            self._not_a_hyperparameter = time.time()

    train(tmp_path, digits, cls=functools.partial(Scaled, scale=1.0), max_steps=2)
    with pytest.raises(Error, match=r"scales.a\[0\] was 1.0, is 2.0"):
        train(tmp_path, digits, cls=functools.partial(Scaled, scale=2.0), max_steps=2)


def test_a_new_run_refuses_a_step_that_has_trained_already(undisturbed, digits, tmp_path):
    with pytest.raises(Error, match=r"the step has trained already \(updates: 48\)"):
        train_and_evaluate(undisturbed[1], digits, str(tmp_path), epochs=1)


def test_metrics_of_the_step_may_be_of_any_number_type(digits, tmp_path):
    class Measured(TrainStep):
        def extra_metrics(self, images, labels, logits):
            return {"a": np.float32(0.5), "b": tf.constant(2)}

    _, results = train(tmp_path, digits, cls=Measured, max_steps=1)
    assert (results["validation_a"], results["test_b"]) == (0.5, 2.0)


def test_a_hold_out_validates_and_the_test_set_is_read_at_the_end(digits, tmp_path):
    held = data.load("digits", holdout=300)
    _, results = train(tmp_path, held, epochs=1)
    assert results["validation_loss"] != results["test_loss"]
    assert held.validation.images.tobytes() == digits.train.images[-300:].tobytes()


def test_early_stopping_ends_the_run_and_a_restart_does_not_go_on(digits, tmp_path):
    class Still(TrainStep):
        def apply_gradients(self, gradients):
            super().apply_gradients([0 * g for g in gradients])

    _, results = train(tmp_path, digits, cls=Still, epochs=9, early_stopping_patience=2)
    assert results["steps"] == 3 * 24
    _, again = train(tmp_path, digits, cls=Still, epochs=9, early_stopping_patience=2)
    assert again == results


def test_an_order_that_draws_is_asked_once_an_epoch_wherever_the_run_stops(digits, tmp_path):
    class Drawing(TrainStep):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.generator = tf.random.Generator.from_seed(1)

        def epoch_order(self, examples, epoch):
            return np.argsort(self.generator.uniform([len(examples.labels)]))

    straight, _ = train(tmp_path / "straight", digits, cls=Drawing, epochs=3)
    for epochs in (1, 2, 3):  # resumed where an epoch begins
        step, _ = train(tmp_path / "resumed", digits, cls=Drawing, epochs=epochs)
    assert state_of(step) == state_of(straight)


class NanAt30(TrainStep):
    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        return tf.where(self.optimizer.iterations.value == 29, np.nan, loss), logits


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(digits, tmp_path):
    with pytest.raises(Error, match=r"loss is nan at step 30; ckpt-24 is the last good checkpoint"):
        train(tmp_path, digits, cls=NanAt30)
    assert checkpoint.load_newest(str(tmp_path / "checkpoints"))[1]["step"] == 24
    assert not (tmp_path / "results.json").exists()


def test_an_exploding_rate_is_stopped(digits, tmp_path):
    with pytest.raises(Error, match="at step"):
        train(tmp_path, digits, model=CNN, optimizer=lambda: keras.optimizers.SGD(1e6))


def test_weights_that_are_not_finite_are_not_saved(digits, tmp_path):
    class NanWeights(TrainStep):
        def apply_gradients(self, gradients):
            last = self.optimizer.iterations.value == 9
            super().apply_gradients([tf.where(last, np.nan, g) for g in gradients])

    with pytest.raises(Error, match="at step 10"):
        train(tmp_path, digits, cls=NanWeights, checkpoint_every=5, steps_per_loop=5)
    assert checkpoint.load_newest(str(tmp_path / "checkpoints"))[1]["step"] == 5


def test_a_second_process_is_refused_by_name(digits, tmp_path):
    with files.lock(str(tmp_path)), pytest.raises(Error, match=f"in use by process {os.getpid()}"):
        train(tmp_path, digits)


def test_a_step_that_does_not_count_is_a_bug_with_a_traceback(digits, tmp_path):
    class Forgetful(TrainStep):
        def apply_gradients(self, gradients):
            pass

    with pytest.raises(RuntimeError, match="iterations"):
        train(tmp_path, digits, cls=Forgetful)
