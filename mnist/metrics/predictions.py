"""Exact metrics over every example, in NumPy. No option of the training can change this evaluation loss."""

from typing import NamedTuple

import numpy as np
import scipy  # loads stats at its first use, because training does without


def softmax(logits):
    """Returns probabilities, float64 `[N, classes]`, of logits of the same shape."""
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def compute_metrics(logits, labels):
    """Returns mean cross-entropy and accuracy of logits `[N, classes]` on integer labels `[N]`.

    Sums over all examples in float64 and divides once, so that the result does not depend on the batch size. Returns:
    a dict of floats, `loss` and `accuracy`.
    """
    correct = np.argmax(logits, axis=1) == np.asarray(labels)
    loss = example_losses(logits, labels).sum() / len(labels)
    return {"loss": float(loss), "accuracy": float(correct.sum() / len(labels))}


def example_losses(logits, labels):
    """Returns the cross-entropy of each example, float64 `[N]`, of logits `[N, classes]` on integer labels `[N]`."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), np.asarray(labels, np.int64)]


def count_confusions(labels, predictions, num_classes):
    """Counts predictions `[N]` of labels `[N]`. Returns: int64 `[classes, classes]`, label by prediction."""
    cells = np.asarray(labels, np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def wilson_interval(correct, count):
    """Returns the two ends of the 95 % score interval of `correct` hits in `count` >= 1 predictions, floats in [0, 1].

    It is sound also near 0 and 1, where mean ± 1.96 standard errors is not. It covers the choice of the test images,
    but not the choice of the seed (Wilson, "Probable inference", 1927).
    """
    interval = scipy.stats.binomtest(int(correct), int(count)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


class Calibration(NamedTuple):
    """The distance of confidence from accuracy. A bin without images has NaN for both."""

    ece: float  # expected calibration error in [0, 1]: the mean |accuracy - confidence| of bins, weighted by images
    confidence: np.ndarray  # float64 [bins], means
    accuracy: np.ndarray  # float64 [bins]
    count: np.ndarray  # int64 [bins], images


def calibration(logits, labels, bins=15):
    """Compares confidence, the probability of the predicted class, with accuracy (Guo et al., arXiv:1706.04599).

    Args:
      logits: floats `[N, classes]`.
      labels: integers `[N]`.
      bins: an int. The number of equal bins of confidence in [0, 1]. Each contains its upper end.

    Returns: a `Calibration`.
    """
    predictions = np.argmax(logits, axis=1)
    confidence = softmax(logits)[np.arange(len(predictions)), predictions]
    numbers = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    count = np.bincount(numbers, minlength=bins)
    sums = [np.bincount(numbers, values, bins) for values in (confidence, predictions == np.asarray(labels))]
    ece = float(np.abs(sums[0] - sums[1]).sum() / len(predictions))
    means = [np.divide(total, count, out=np.full(bins, np.nan), where=count > 0) for total in sums]
    return Calibration(ece, *means, count)


class RunningMeans:
    """The means over the steps of an epoch as Keras defines them: weighted by batch size, in float32.

    Attributes: `totals`, a dict from names to weighted sums, and `count`, the number of images.
    """

    def __init__(self, totals=None, count=0):
        self.totals = dict(totals or {})
        self.count = count

    def add(self, scalars, batch_sizes):
        """Adds consecutive steps: a dict of float32 arrays `[steps]`, and their batch sizes `[steps]`."""
        weights = np.asarray(batch_sizes, np.float32)
        for name, values in scalars.items():
            # cumsum adds one value after the other, as Keras' metric does, but NumPy's sum adds in pairs.
            terms = np.concatenate([[self.totals.get(name, 0.0)], values * weights]).astype(np.float32)
            self.totals[name] = float(np.cumsum(terms, dtype=np.float32)[-1])
        self.count += int(np.sum(batch_sizes))

    def means(self):
        """Returns a dict from names to floats."""
        return {name: float(np.float32(total) / np.float32(self.count)) for name, total in self.totals.items()}


def is_lower_better(name):
    """Returns whether the lowest value of a metric is the best, by the end of its name. None: it is unclear."""
    if name.endswith(("accuracy", "images_per_second")):
        return False
    return True if name.endswith(("loss", "error", "seconds")) else None
