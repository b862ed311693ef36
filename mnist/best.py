"""The checkpoint of the best evaluation of a run, which nothing deletes: `<workdir>/checkpoints/best/ckpt-<step>`."""

import math
import os

from mnist import Error, checkpoint

FOLDER = "best"


class Best:
    """Which evaluation of a run was the best so far.

    Args:
      directory: of the run's checkpoints.
      key: a metric of the history, as `validation_loss`.
      highest: whether its highest value is the best, not its lowest.

    Attributes:
      directory: of the best one's checkpoint.
      step: its step, None before there is one.
    """

    def __init__(self, directory, key, highest):
        self.directory = os.path.join(directory, FOLDER)
        self._key, self._sign = key, 1 if highest else -1
        self.step, self._value = None, None
        if loaded := checkpoint.load_newest(
            self.directory
        ):  # what is there may be of a later step than a run goes on from
            self._take(loaded[1]["history"][-1])

    def _take(self, entry):
        value = entry.get(self._key)
        if value is not None and math.isfinite(value):
            self.step, self._value = entry["step"], value

    def is_better(self, entry):
        """Whether an evaluation, an entry of the history, is better than all before; it is the best then.

        Raises: `mnist.Error` if it has no such metric.
        """
        if self._key not in entry and (entry["step"] or not self._key.startswith("train_")):  # step 0 has no training
            known = ", ".join(name for name in entry if name != "step")
            raise Error(f"--keep_best={self._key}: no evaluation has it; there are {known}.")
        value = entry.get(self._key)
        if value is None or (self._value is not None and not self._sign * value > self._sign * self._value):
            return False
        before, self._value = self._value, None
        self._take(entry)
        if self._value is None:  # not finite
            self._value = before
            return False
        return True
