"""The checkpoint of the best evaluation of a run, which nothing deletes: `<workdir>/checkpoints/best/ckpt-<step>`."""

import contextlib
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
      history: of the run, as far as it has been saved. A run that begins has none: what another left is removed.

    Attributes:
      directory: of the best one's checkpoint.
      step: its step, None before there is one.
    """

    def __init__(self, directory, key, highest, history):
        self.directory = os.path.join(directory, FOLDER)
        self._key, self._sign = key, 1 if highest else -1
        self.step, self._value = None, None
        if not history:
            checkpoint.remove_newer(self.directory, -1)
        for entry in history:
            self._take(entry)

    @property
    def is_kept(self):
        """Whether the checkpoint is that of `step`: after a kill it may be of a later one, which is still to come."""
        return self.step is not None and checkpoint.steps(self.directory)[:1] == [self.step]

    def _take(self, entry):
        value = entry.get(self._key)
        if value is None or not math.isfinite(value):
            return False
        if self._value is not None and self._sign * value <= self._sign * self._value:
            return False
        self.step, self._value = entry["step"], value
        return True

    def is_better(self, entry):
        """Whether an evaluation, an entry of the history, is better than all before; it is the best then.

        Raises: `mnist.Error` if it has no such metric.
        """
        if self._key not in entry and (entry["step"] or not self._key.startswith("train_")):  # step 0 has no training
            known = ", ".join(name for name in entry if name != "step")
            raise Error(f"--keep_best={self._key}: no evaluation has it; there are {known}.")
        return self._take(entry)

    @contextlib.contextmanager
    def assigned(self, model):
        """While entered, the model that a step evaluates has the best weights."""
        values = [variable.numpy() for variable in model.variables]
        tensors, _ = checkpoint.load_newest(self.directory)
        for i, variable in enumerate(model.variables):
            variable.assign(tensors[f"eval_model/{i}"])
        try:
            yield
        finally:
            for variable, value in zip(model.variables, values, strict=True):
                variable.assign(value)
