"""Metrics count every example, and equal the metrics of scikit-learn and Keras."""

from mnist.metrics import calibration, compute_metrics, softmax, wilson_interval
from mnist.model import CNN, make_predict_logits

import keras
import numpy as np
import pytest
from conftest import random_examples
from sklearn.metrics import accuracy_score, log_loss


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_no_bit_depends_on_the_batch_size(dtype):
    """Also if one image is left over, which alone would have other last bits."""
    model, images = CNN(dtype=dtype), random_examples(101)[0][..., np.newaxis]
    logits = [make_predict_logits(model, size)(images).numpy() for size in (2, 10, 20, 64, 100, 101, 500)]
    assert all(np.array_equal(part, logits[0]) for part in logits)


@pytest.mark.parametrize("count", [1, 2, 997])
def test_metrics_equal_sklearn_and_keras(count):
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 3, (count, 10)).astype(np.float32), random.integers(0, 10, count, np.uint8)
    metrics = compute_metrics(logits, labels)
    assert metrics["accuracy"] == accuracy_score(labels, logits.argmax(axis=1))
    assert metrics["loss"] == pytest.approx(log_loss(labels, softmax(logits), labels=range(10)), rel=1e-12)
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_huge_logits_give_finite_losses_and_probabilities():
    logits = np.float32([[1e30] + [0] * 9, [0, -1e30] + [0] * 8])
    assert compute_metrics(logits, np.array([0, 2]))["loss"] == pytest.approx(np.log(9) / 2)
    assert compute_metrics(logits, np.array([1, 1]))["loss"] == pytest.approx(1e30)
    np.testing.assert_allclose(softmax([[1e30, 1e30, 0], [0, np.log(3), -1e30]]), [[0.5, 0.5, 0], [0.25, 0.75, 0]])


@pytest.mark.parametrize(
    ("correct", "count", "expected"),
    # 15 of 148 is in Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I.
    [(9910, 10000, (0.98895, 0.99267)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (20, 20, (0.8389, 1))],
)
def test_the_interval_of_an_accuracy_is_wilsons(correct, count, expected):
    assert wilson_interval(np.int64(correct), count) == pytest.approx(expected, abs=5e-5)


def test_calibration_and_accuracy_agree_on_nearly_equal_logits():
    logits = np.float32([[0, 1e-20, 0]])  # in float64 the three probabilities are equal
    result = calibration(logits, np.array([1]))
    assert result.accuracy[np.flatnonzero(result.count)] == compute_metrics(logits, np.array([1]))["accuracy"] == 1
