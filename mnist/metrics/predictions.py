"""Exact metrics over every example, in NumPy.

The evaluation loss lives here, out of reach of what training does to its own loss and labels.
"""

from typing import NamedTuple

import numpy as np


def softmax(logits):
    """Probabilities `[N, classes]`, float64, of logits of the same shape."""
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def compute_metrics(logits, labels):
    """Mean cross-entropy and accuracy of logits `[N, classes]` on integer labels `[N]`, as floats.

    Summed over all examples in float64, then divided, so that the batch size of the evaluation has
    no part in it.
    """
    labels = np.asarray(labels, np.int64)
    losses = example_losses(logits, labels)
    correct = np.argmax(logits, axis=1) == labels
    return {"loss": float(losses.sum() / len(labels)), "accuracy": float(correct.sum() / len(labels))}


def example_losses(logits, labels):
    """Cross-entropy of each example, float64 `[N]`, of logits `[N, classes]` on integer labels `[N]`."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), np.asarray(labels, np.int64)]


def count_confusions(labels, predictions, num_classes):
    """Counts predictions `[N]` for labels `[N]`: int64 `[classes, classes]`, row: label, column: prediction."""
    cells = np.asarray(labels, np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def wilson_interval(correct, count):
    """The 95 % score interval of an accuracy, `correct` of `count` >= 1 images: its two ends, floats in [0, 1].

    Of Wilson, "Probable inference, the law of succession, and statistical inference" (1927). Sound also near 0 and 1,
    where mean ± 1.96 standard errors is not. It tells of the choice of test images, not of the seed of the training.
    """
    from scipy.stats import binomtest  # takes half a second to import, and training needs none

    interval = binomtest(int(correct), int(count)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


class Calibration(NamedTuple):
    """How far confidence is from accuracy. A bin without images has NaN for both."""

    ece: float  # expected calibration error in [0, 1]: the mean of |accuracy - confidence| of bins, by images
    confidence: np.ndarray  # float64 [bins], means
    accuracy: np.ndarray  # float64 [bins]
    count: np.ndarray  # int64 [bins], images


def calibration(logits, labels, bins=15):
    """Compares confidence, the probability of the predicted class, with accuracy (Guo et al., arXiv:1706.04599).

    Args:
      logits: floats `[N, classes]`. labels: integers `[N]`.
      bins: number of bins of confidence, equally wide in [0, 1]; each holds its upper end.

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


def precision_recall(shares, is_class, thresholds=101):
    """Counts for a precision-recall curve of one class, by threshold from 0 to 1.

    Args:
      shares: the probability of the class, `[N]`. is_class: whether it is the label, bool `[N]`.

    Returns: float32 `[6, thresholds]`: true positives, false positives, true negatives, false negatives, precision and
      recall. Where nothing is as probable as the threshold the precision is 0, as TensorBoard expects.
    """
    places = np.floor(shares * (thresholds - 1)).astype(np.int64)
    counts = [np.bincount(places[chosen], minlength=thresholds) for chosen in (is_class, ~is_class)]
    tp, fp = (count[::-1].cumsum()[::-1] for count in counts)
    tn, fn = counts[1].sum() - fp, counts[0].sum() - tp
    return np.array([tp, fp, tn, fn, tp / np.maximum(tp + fp, 1), tp / np.maximum(tp + fn, 1)], np.float32)


class RunningMeans:
    """Means over the steps of an epoch by Keras' definition: weighted by batch size, in float32.

    Args:
      totals: a dict from names to sums so far. count: number of images so far.
    """

    def __init__(self, totals=None, count=0):
        self.totals = dict(totals or {})
        self.count = count

    def add(self, scalars, batch_sizes):
        """Adds consecutive steps: a dict of float32 arrays `[steps]`, and their batch sizes `[steps]`."""
        weights = np.asarray(batch_sizes, np.float32)
        for name, values in scalars.items():
            # cumsum adds one after the other, as Keras' metric does; sum() would pair them up.
            terms = np.concatenate([[self.totals.get(name, 0.0)], values * weights]).astype(np.float32)
            self.totals[name] = float(np.cumsum(terms, dtype=np.float32)[-1])
        self.count += int(np.sum(batch_sizes))

    def means(self):
        """A dict from names to floats."""
        return {name: float(np.float32(total) / np.float32(self.count)) for name, total in self.totals.items()}


def is_lower_better(name):
    """Whether of a metric the lowest value is the best: of a loss, an error or seconds, by the end of its name."""
    return name.endswith(("loss", "error", "seconds"))
