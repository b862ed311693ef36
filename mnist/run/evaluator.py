"""Measures the model that a step evaluates, exactly, over every example of a part of the data."""

import functools
import inspect
import time
import typing

from mnist import Error
from mnist.metrics import compute_metrics
from mnist.model import IMAGE_SHAPE, keep_state, make_predict_logits
from mnist.step import check_extra_metrics

import numpy as np


class Measured(typing.NamedTuple):
    """What `Evaluator.measure` returns."""

    metrics: dict  # loss, accuracy and the step's own, floats
    logits: np.ndarray  # float32 [N, classes]
    images_per_second: float  # but for the step's own metrics


class Evaluator:
    """Evaluates a `TrainStep` in batches of `batch_size`, which have no part in the result.

    Raises: `mnist.Error` if the step's `extra_metrics` does not take images, labels and logits.
    """

    def __init__(self, step, batch_size):
        self.step, self.batch_size = step, batch_size
        try:
            inspect.signature(step.extra_metrics).bind(None, None, None)
        except TypeError:
            raise Error(f"extra_metrics of {type(step).__name__} has to take images, labels and logits.") from None

    @functools.cached_property
    def _predict_logits(self):
        predict_logits = make_predict_logits(self.step.eval_model, self.batch_size)
        predict_logits(np.zeros([1, *IMAGE_SHAPE], np.uint8))  # compiles, so that no clock counts it
        return predict_logits

    def measure(self, examples, part):
        """Evaluates `step.eval_model` as it is on a `data.Examples`; `part`: "validation" or "test"."""
        predict_logits = self._predict_logits
        start = time.perf_counter()
        logits = predict_logits(examples.images).numpy()
        metrics = compute_metrics(logits, examples.labels)
        images_per_second = len(logits) / (time.perf_counter() - start)
        view, self.step.view.part = self.step.view, part
        with keep_state(self.step.eval_model):
            own = self.step.extra_metrics(*examples, logits)
        view.part = "train"
        return Measured(metrics | check_extra_metrics(own, metrics), logits, images_per_second)
