"""The checkpoint of the best evaluation of a run, which nothing deletes: `<workdir>/checkpoints/best/ckpt-<step>`."""

import contextlib
import math
import os

from mnist import Error
from mnist.checkpoint import bundle as checkpoint

FOLDER = "best"


def best_step(history, key, highest):
    """The step of the first evaluation that is the best of a run's history by a key, as `Best` has them; or None."""
    known = [entry for entry in history if entry.get(key) is not None and math.isfinite(entry[key])]
    best = (max if highest else min)(known, key=lambda entry: entry[key], default={"step": None})
    return best["step"]


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
        self._key, self._highest, self._history = key, highest, [*history]
        if not history:
            checkpoint.remove_newer(self.directory, -1)

    @property
    def step(self):
        return best_step(self._history, self._key, self._highest)

    @property
    def is_kept(self):
        """Whether the checkpoint is that of `step`: after a kill it may be of a later one, which is still to come."""
        return self.step is not None and checkpoint.steps(self.directory)[:1] == [self.step]

    def is_better(self, entry):
        """Whether an evaluation, an entry of the history, is better than all before; it is the best then.

        Raises: `mnist.Error` if it has no such metric.
        """
        if self._key not in entry and (entry["step"] or not self._key.startswith("train_")):  # step 0 has no training
            known = ", ".join(name for name in entry if name != "step")
            raise Error(f"--keep_best={self._key}: no evaluation has it; there are {known}.")
        self._history.append(entry)
        return self.step == entry["step"]

    @contextlib.contextmanager
    def assigned(self, step, variables):
        """While entered, a step is as it was then; `variables`: all that a checkpoint holds of it, by name."""
        variables = variables | checkpoint.variables_of_eval_model(step)
        values = {name: variable.numpy() for name, variable in variables.items()}
        tensors, _ = checkpoint.load_newest(self.directory)
        for name, variable in variables.items():
            variable.assign(tensors[name])
        try:
            yield
        finally:
            for name, variable in variables.items():
                variable.assign(values[name])


def load(directory, workdir):
    """The tensors and the metadata of a run's best checkpoint, `directory` that of its checkpoints.

    Raises: `mnist.Error` if none is kept, or one that is not the best by what the run keeps now.
    """
    newest, kept = checkpoint.load_newest(directory), checkpoint.load_newest(os.path.join(directory, FOLDER))
    runs = [loaded[1] for loaded in (kept, newest) if loaded]
    latest = max(runs, key=lambda metadata: metadata["step"], default={})  # after a kill that may be the best
    if kept and "keep_best" not in latest:  # of an older version, which did not say
        return kept
    key = latest.get("keep_best")
    if not key:
        other = f"; it has had one, which --checkpoint={kept[1]['step']} is" if kept else ""
        raise Error(f"--checkpoint=best: {workdir} has none, as it was trained without --keep_best{other}.")
    ended = newest and os.path.exists(os.path.join(workdir, "results.json"))
    step = best_step((newest[1] if ended else latest)["history"], *key)
    if not kept or kept[1]["step"] != step:
        there = f", but those of step {kept[1]['step']}" if kept else ""
        raise Error(
            f"--checkpoint=best: the best {key[0]} of {workdir} was at step {step}, whose weights are not there{there}."
        )
    return kept
