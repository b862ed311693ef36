"""Exact metrics over every example, in NumPy.

The evaluation loss lives here, out of reach of what training does to its own loss and labels.
"""

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
