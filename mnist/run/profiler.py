"""A TensorFlow profile of some steps of a run, for the Profile tab of TensorBoard."""

import contextlib
import os
import sys
import time

from mnist.files import write_errors

import tensorflow as tf


class Profiler:
    """A profile of the steps from `first` to `last`, counted from 1, both included.

    A run that resumes between them profiles the rest. A run that ends between them writes what it has.

    Args:
      workdir: the run's folder. The profile goes to `<workdir>/train/plugins/profile`.
      steps: `(first, last)`, or None for no profile.
    """

    def __init__(self, workdir, steps=None):
        self._logdir = os.path.join(workdir, "train")
        self._first, self._last = steps or (sys.maxsize, 0)
        self._running = False

    @contextlib.contextmanager
    def loop(self, step_number, num_steps):
        """Returns a context manager that profiles, if it is time, `num_steps` steps after step `step_number`."""
        if not self._running and self._first <= step_number + 1 <= self._last:
            tf.profiler.experimental.start(self._logdir)
            self._running = True
        with tf.profiler.experimental.Trace("train_loop", step_num=step_number + 1, _r=1):
            yield
        if step_number + num_steps >= self._last:
            self.close()

    def close(self):
        """Writes the profile, if one has begun and not ended."""
        if self._running:
            self._running = False
            # TensorFlow names a profile by the second, and overwrites a profile of the same second.
            while os.path.exists(os.path.join(self._logdir, "plugins", "profile", time.strftime("%Y_%m_%d_%H_%M_%S"))):
                time.sleep(0.1)
            with write_errors(f"write a profile to {self._logdir}"):
                tf.profiler.experimental.stop()
