"""Norms and histograms of a step, and the summaries that research writes from within it."""

import functools
import shutil

from mnist import data
from mnist.loop import Interrupted, train_and_evaluate
from mnist.step import TrainStep, counts, square

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import StopAfter, bits_of, read_events


def make_model():
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input([28, 28, 1]), keras.layers.Flatten(), dense(8, name="a"), dense(10, name="b")])


def train(workdir, dataset, cls=TrainStep, optimizer=None, **options):
    keras.utils.set_random_seed(0)
    step = cls(make_model(), optimizer or keras.optimizers.SGD(0.5), seed=0, **options.pop("settings", {}))
    return step, train_and_evaluate(step, dataset, str(workdir), **({"epochs": 1} | options))


def norm(arrays):
    return sum(map(square, arrays)) ** 0.5


def test_norms_and_histograms_have_the_values_of_the_step(digits, tmp_path):
    class Seeing(TrainStep):
        @functools.cached_property  # no checkpoint holds it
        def seen(self):
            return []

        def __call__(self, images, labels):
            before = [tf.identity(v.value) for v in self.model.trainable_variables]
            scalars = super().__call__(images, labels)
            after = [v.value.read_value() for v in self.model.trainable_variables]
            tf.numpy_function(lambda *arrays: self.seen.append(arrays), [*before, *after], [])
            return scalars

    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=1024.0)
    step, _ = train(tmp_path, digits, Seeing, scaled, norms_every=2, histograms_every=3, max_steps=6)
    seen = step.seen
    found = read_events(tmp_path / "train")
    assert [step for step, _ in found["updates/a"]] == [2, 4, 6]
    assert [step for step, _ in found["weights/a/kernel"]] == [3, 6]
    for place, number in enumerate((2, 4, 6)):
        before, after = seen[number - 1][:4], seen[number - 1][4:]
        gradients = [(x - y) / np.float32(0.5) for x, y in zip(before, after, strict=True)]  # of SGD, not scaled
        for layer, own in (("a", slice(0, 2)), ("b", slice(2, 4)), ("all layers", slice(0, 4))):
            update = norm([y - x for x, y in zip(before[own], after[own], strict=True)])
            expected = {"weights": norm(after[own]), "updates": update / norm(before[own])}
            for tag, value in (expected | {"gradients": norm(gradients[own])}).items():
                assert found[f"{tag}/{layer}"][place][1] == pytest.approx(value, rel=1e-4), (tag, layer, number)
    np.testing.assert_allclose(found["weights/b/bias"][1][1], counts(seen[5][7]), rtol=1e-6)
    assert found["gradients/a/kernel"][1][1][:, 2].sum() == 784 * 8


def test_measuring_changes_no_bit(digits, tmp_path):
    weights = []
    for name, every in (("all", 1), ("none", 0)):
        adam = keras.optimizers.Adam(1e-3)
        step, _ = train(tmp_path / name, digits, optimizer=adam, norms_every=every, histograms_every=every)
        weights.append(bits_of(step))
    assert weights[0] == weights[1]
    assert not any(
        tag.startswith(("weights", "gradients", "updates")) for tag in read_events(tmp_path / "none" / "train")
    )


class Writing(TrainStep):
    """A step that writes every few steps, as often as --norms_every, and at each evaluation."""

    def __call__(self, images, labels):
        with self.view.every(8):
            tf.summary.scalar("own/call", 1.0)
        return super().__call__(images, labels)

    @tf.function
    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        with self.view.every(5):
            tf.summary.image("images/batch", images[:2], max_outputs=2)
            tf.summary.histogram("pixels/grey", images)
        return images, labels

    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        with self.view.every(1):
            tf.summary.scalar("losses/of_a_slice", loss)
        tf.summary.scalar("default", loss)
        return loss, logits

    @functools.cached_property
    def _seen(self):
        return []

    def extra_metrics(self, images, labels, logits):
        view = self.view
        seen = (view.workdir, view.dataset.name, view.part, len(labels), logits.shape)
        self._seen.append(seen)
        with view.every(1000):
            tf.summary.histogram("logits/all", logits)
        return {"margin": np.sort(logits)[:, -1].mean() - np.sort(logits)[:, -2].mean()}


def test_research_writes_from_the_step_and_from_evaluations_and_a_resume_repeats_nothing(tmp_path):
    held = data.load("digits", holdout=97)
    options = {"settings": {"slices": 2}, "norms_every": 4, "steps_per_loop": 3, "max_steps": 22}
    with pytest.raises(Interrupted):
        train(tmp_path, held, Writing, interrupt=StopAfter(4), **options)
    shutil.rmtree(tmp_path / "checkpoints")  # as after kill -9, when event files are ahead of checkpoints
    with pytest.raises(Interrupted):
        train(tmp_path, held, Writing, interrupt=StopAfter(3), **options)
    step, results = train(tmp_path, held, Writing, **options)
    found = read_events(tmp_path / "train")
    assert [n for n, _ in found["images/batch"]] == [n for n, _ in found["pixels/grey"]] == [5, 10, 15, 20]
    assert [n for n, _ in found["own/call"]] == [8, 16]
    assert [n for n, _ in found["losses/of_a_slice"]] == list(range(1, 23))
    assert [n for n, _ in found["loss/default"]] == [4, 8, 12, 16, 20]
    assert len(found["images/batch"][0][1]) == 2 + 2  # width, height and two pictures
    assert [n for n, _ in read_events(tmp_path / "validation")["logits/all"]] == [0, 22]
    assert [n for n, _ in read_events(tmp_path / "test")["logits/all"]] == [22]
    assert step._seen[-1] == (str(tmp_path), "digits", "test", len(held.test.labels), (len(held.test.labels), 10))
    assert step._seen[-2][2:4] == ("validation", 97)
    assert results["validation_margin"] > 0
    assert read_events(tmp_path / "validation")["epoch/margin"][-1][1] == pytest.approx(results["validation_margin"])


def test_a_step_may_be_resumed_without_what_it_wrote(digits, tmp_path, monkeypatch):
    class Maybe(TrainStep):
        def prepare_batch(self, images, labels):
            with self.view.every(2):
                tf.summary.histogram("pixels/grey", images)
            return super().prepare_batch(images, labels)

    train(tmp_path, digits, Maybe, max_steps=4)
    monkeypatch.setattr(tf.summary, "histogram", lambda *_: None)
    train(tmp_path, digits, Maybe, max_steps=6)
    assert [n for n, _ in read_events(tmp_path / "train")["pixels/grey"]] == [2, 4]


def test_without_a_run_a_step_that_writes_is_silent():
    step = Writing(make_model(), keras.optimizers.SGD(0.5))
    images, labels = tf.zeros([4, 28, 28, 1], tf.uint8), tf.zeros([4], tf.uint8)
    assert np.isfinite(tf.function(step)(images, labels)["loss"])
    assert np.isfinite(step(images, labels)["loss"])


def test_histograms_of_odd_values():
    assert counts(np.array([np.nan, np.inf, 1.0], np.float32))[:, 2].sum() == 1
    assert counts(np.array([np.nan], np.float32)).shape == (30, 3)
    for values in ([1, 1.0000001], [1e9], [1e20, 1e20], [-3e38, 3e38], []):
        found = counts(np.array(values, np.float32))
        assert found[:, 2].sum() == len(values)
        assert (np.diff(found[:, 0]) > 0).all()
