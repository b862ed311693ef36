"""The summaries that research writes from within a step, and the steps whose norms and histograms are measured."""

import contextlib
import math

from mnist.step.norms import measure_histograms, measure_norms, names_of

import numpy as np
import tensorflow as tf


class View:
    """The run as a step sees it, which a `TrainStep` has as `view`.

    In a run, `tf.summary` writes from the step's methods every `norms_every` steps, and from `extra_metrics` at each
    evaluation. Outside of a run it writes nothing, and in a shared run only the chief writes.

    Args:
      workdir: a string. The run's folder as the user typed it. Default: None, outside of a run.
      dataset: a `data.Dataset`. The run's data. Default: None, outside of a run.
      norms_every, histograms_every: ints. Steps between two measurements. Default: 0, which measures nothing.
      is_silent: a bool. Whether this process measures nothing. It still takes the same steps one by one as the
        chief, because collectives in a loop meet only collectives of the same loop.

    Attributes:
      workdir, dataset: as given.
      part: "train", but in `extra_metrics` "validation" or "test", the part that the images belong to.
      writer: a `tf.summary` writer for the step that is being traced. None: it writes nothing.
    """

    def __init__(self, workdir=None, dataset=None, norms_every=0, histograms_every=0, is_silent=False):
        self.workdir, self.dataset, self.part, self.writer = workdir, dataset, "train", None
        self._norms_every, self._histograms_every, self._is_silent = norms_every, histograms_every, is_silent
        self._is_recording, self._seen = True, []

    @contextlib.contextmanager
    def every(self, steps):
        """Makes `tf.summary` write at every `steps`-th step, or in `extra_metrics` at each evaluation."""
        number = tf.summary.experimental.get_step()
        with contextlib.ExitStack() as stack:
            if number is not None and self.part == "train":
                stack.enter_context(tf.summary.record_if(tf.equal(number % steps, 0) if self._is_recording else False))
                stack.enter_context(tf.name_scope(""))  # TensorFlow would put the graph's scopes before the name
            yield

    @contextlib.contextmanager
    def recording(self, is_recording):
        """Sets whether summaries of what is traced are recorded, also within `every`."""
        before, self._is_recording = self._is_recording, is_recording
        try:
            with contextlib.nullcontext() if is_recording else tf.summary.record_if(False):
                yield
        finally:
            self._is_recording = before

    @contextlib.contextmanager
    def writing(self, iterations):
        """Lets `tf.summary` record the step that is traced, under the number `iterations` + 1."""
        if self.writer is None:
            yield
            return
        number = tf.cast(iterations, tf.int64) + 1
        due = tf.equal(number % self._norms_every, 0) if self._norms_every else False
        self.writer.flush = lambda: None  # as_default() would make the graph flush at each step
        try:
            with self.writer.as_default(number), tf.summary.record_if(due):
                yield
        finally:
            del self.writer.flush

    def is_written(self, function):
        """Returns whether a concrete function of the step writes with `tf.summary`."""
        return self.writer is not None and any(x is self.writer._resource for x, _ in function.graph.captures)

    def next_look(self, number):
        """Returns the first step from `number` on that is measured, infinity if none is."""
        return min((-(-number // n) * n for n in (self._norms_every, self._histograms_every) if n), default=math.inf)

    def look(self, step, number, take_step):
        """Takes step `number` of a `TrainStep`, measures its update for `take`, and returns its scalars.

        `take_step` is a function without arguments that returns scalars and gradients.
        """
        if self._is_silent:
            return take_step()[0]
        variables = step.trained_variables()
        before = list(map(_to_floats, variables))
        scale = np.float32(step.optimizer.scale_loss(1.0))
        scalars, gradients = take_step()
        after, names = list(map(_to_floats, variables)), names_of(step.model, variables)
        known = {i: _to_floats(tf.convert_to_tensor(g)) / scale for i, g in enumerate(gradients) if g is not None}
        norms_due, histograms_due = (n and number % n == 0 for n in (self._norms_every, self._histograms_every))
        norms = measure_norms(names, before, after, known) if norms_due else {}
        self._seen.append((number, norms, measure_histograms(names, after, known) if histograms_due else {}))
        return scalars

    def take(self):
        """Returns the measurements since the last call: a list of a step, a dict of scalars, a dict of histograms."""
        seen, self._seen = self._seen, []
        return seen


def _to_floats(tensor):
    """Returns a copy of a tensor or variable as a float32 array."""
    return np.array(tensor.numpy(), np.float32)
