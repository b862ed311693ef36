"""The checkpoint of the best evaluation of a run, which the run keeps: `<workdir>/checkpoints/best/ckpt-<step>`."""

import contextlib
import math
import os

from mnist import Error
from mnist.checkpoint import bundle, state
from mnist.checkpoint.variables import variables_of_eval_model

FOLDER = "best"


def best_step(history, key, highest):
    """Returns the step of the best evaluation, the first of equals. Returns None if none has a finite value.

    Args:
      history: a list of dicts, one for each evaluation.
      key: a string. The metric, such as `validation_loss`.
      highest: a bool. Whether the highest value is the best.
    """
    known = [entry for entry in history if entry.get(key) is not None and math.isfinite(entry[key])]
    best = (max if highest else min)(known, key=lambda entry: entry[key], default={"step": None})
    return best["step"]


class Best:
    """The best evaluation of a run so far, and its checkpoint.

    Args:
      directory: the folder of the run's checkpoints.
      key, highest: as `best_step` takes them.
      history: the history of the run, which the run appends to. If it is empty, the best of another run is removed.

    Attributes:
      directory: the folder of the best checkpoint.
    """

    def __init__(self, directory, key, highest, history):
        self.directory = os.path.join(directory, FOLDER)
        self._key, self._highest, self._history = key, highest, history
        if not history:
            bundle.remove_newer(self.directory, -1)

    @property
    def step(self):
        """The step of the best evaluation. None before the first."""
        return best_step(self._history, self._key, self._highest)

    def is_kept(self):
        """Returns whether the checkpoint is the best. After a kill it may hold a step that the run has yet to reach."""
        return self.step is not None and bundle.steps(self.directory)[:1] == [self.step]

    def is_better(self, entry):
        """Returns whether an evaluation, which is not in the history yet, is better than all others."""
        return best_step([*self._history, entry], self._key, self._highest) == entry["step"]

    @contextlib.contextmanager
    def assigned(self, step, variables):
        """Gives a step its best values while entered. The variables are a dict of everything in a checkpoint."""
        variables = variables | variables_of_eval_model(step)
        values, hooks = {name: variable.numpy() for name, variable in variables.items()}, state.dump(step.state)
        tensors, metadata = bundle.load_newest(self.directory)
        state.restore(step.state, metadata.get("state", hooks))  # an older version did not save it
        for name, variable in variables.items():
            variable.assign(tensors[name])
        try:
            yield
        finally:
            for name, variable in variables.items():
                variable.assign(values[name])
            state.restore(step.state, hooks)


def load(directory, workdir):
    """Returns the tensors and the metadata of a run's best checkpoint.

    Args:
      directory: the folder of the run's checkpoints.
      workdir: the run's folder, for messages.

    Raises: `mnist.Error` if the run keeps none, or if it is not the best by the metric that the run keeps now.
    """
    newest, kept = bundle.load_newest(directory), bundle.load_newest(os.path.join(directory, FOLDER))
    runs = [loaded[1] for loaded in (kept, newest) if loaded]
    latest = max(runs, key=lambda metadata: metadata["step"], default={})  # after a kill that may be the best
    if kept and "keep_best" not in latest:  # an older version did not save the key
        return kept
    key = latest.get("keep_best")
    if not key:
        other = f"; --checkpoint={kept[1]['step']} is one that it kept before" if kept else ""
        raise Error(f"--checkpoint=best: {workdir} keeps no best, as it was trained without --keep_best{other}.")
    ended = newest and os.path.exists(os.path.join(workdir, "results.json"))
    step = best_step((newest[1] if ended else latest)["history"], *key)
    if not kept or kept[1]["step"] != step:
        there = f", but those of step {kept[1]['step']}" if kept else ""
        raise Error(
            f"--checkpoint=best: the best {key[0]} of {workdir} was at step {step}, whose weights are not there{there}."
        )
    return kept
