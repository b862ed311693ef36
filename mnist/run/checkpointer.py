"""Restores a run, saves it, keeps its best evaluation, and refuses what a resume would not continue exactly."""

import dataclasses
import os

from mnist import Error, checkpoint
from mnist.checkpoint import Best, attributes, check_unchanged, fingerprint_of, resume
from mnist.model import describe_model, probe
from mnist.run.state import RunState
from mnist.step import TrainStep, describe_measuring

import tensorflow as tf


class Checkpointer:
    """The checkpoints of a run, in `<workdir>/checkpoints`. Of several workers, the chief alone reads and writes them.

    Args:
      step: a `TrainStep` that is not traced yet.
      dataset: a `data.Dataset`.
      workdir: folder of the run as it was given, for messages.
      plan: the `Plan` of the run.
      cluster: the `Cluster` of the processes that share the run.
      settings: dict of further settings that change the numbers.

    Attributes:
      variables: everything that a checkpoint holds of the step, a dict from names to `tf.Variable`s.
      best: the `Best` evaluation so far. None if the run keeps none, and on a worker that is not the chief.
    """

    def __init__(self, step, dataset, workdir, plan, cluster, settings=None):
        self._step, self._dataset, self._workdir, self._plan, self._cluster = step, dataset, workdir, plan, cluster
        self._directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._fingerprint = fingerprint_of(step, dataset, plan, settings)
        # Collected now, because a trace may add variables that a new step does not have when it loads a checkpoint.
        self.variables = checkpoint.variables_of(step)
        self._attributes = attributes(step)
        self._saved, self.best = (0, 0), None

    def restore(self):
        """Restores the step from the newest sound checkpoint, if there is one.

        Returns: the `RunState`, and the order of the current epoch as `resume.restore` returns it.
        Raises: `mnist.Error` as `resume.restore`.
        """
        step, dataset, plan = self._step, self._dataset, self._plan
        found, order = resume.restore(step, plan, self._fingerprint, self._directory, self._workdir, self._cluster)
        state = dataclasses.replace(
            RunState.from_json(found or {}),
            fingerprint=self._fingerprint,
            dataset=dataset.name,
            data_dir=dataset.data_dir,
            classes=dataset.classes,
            framed=dataset.is_framed(),
            test_sha256=dataset.test.digest(),
            measures=describe_measuring(step),
            keep_best=plan.best,
        )
        self._saved = (state.step, len(state.history))
        if plan.best and self._cluster.is_chief:
            self.best = Best(self._directory, *plan.best, state.history)
        return state, order

    def check_traced(self, state, digest):
        """Raises `mnist.Error` if the traced step computes something else than the run did, or than on the chief."""
        resume.check_traced(state.traced, digest, self._workdir, self._cluster)
        state.traced = digest

    def is_new(self, state):
        """Returns whether the state holds steps or evaluations that no checkpoint holds."""
        return state.step > 0 and (state.step, len(state.history)) != self._saved

    def save(self, state, order):
        """Saves a checkpoint; deletes all but the newest `keep_checkpoints`.

        Args:
          state: the `RunState`.
          order: the order of the current epoch, int32 `[N]`.

        Raises: `mnist.Error` if an attribute of the step has changed, a weight is not finite, the weights differ
          between workers, or the disk is full or read-only.
        """
        check_unchanged(self._attributes, attributes(self._step))
        self._step.update_eval_model()
        self._cluster.check_same(
            checkpoint.digest(self._tensors()) if self._cluster.workers > 1 else 0,
            "has other weights than the chief: its processor or its software computes otherwise, or the step keeps "
            "something to itself. Nothing of this was saved",
        )
        if self._cluster.is_chief:
            self._write(self._directory, state, order, self._plan.keep_checkpoints)
        self._saved = (state.step, len(state.history))

    def save_best(self, state, order):
        """Saves the best evaluation, the newest of `state`, in place of the one before."""
        # A process that was killed may have saved a later one, which the run will reach again.
        checkpoint.remove_newer(self.best.directory, state.step)
        self._write(self.best.directory, state, order, keep=1)

    def _tensors(self):
        return self.variables | checkpoint.variables_of_eval_model(self._step)

    def _write(self, directory, state, order, keep):
        extra = {"answers": tf.constant(probe(self._step.eval_model))}
        if type(self._step).epoch_order is not TrainStep.epoch_order:
            extra["order"] = order  # it may depend on what the step had learnt when the epoch began
        metadata = state.to_json() | {"model": describe_model(self._step.eval_model)}
        try:
            checkpoint.save(directory, self._tensors(), metadata, keep, extra)
        except checkpoint.NotFinite as error:
            raise self.not_finite(f"{error} is not finite at step {state.step}") from None

    def not_finite(self, found):
        """Returns the `mnist.Error` for a loss or a weight that is NaN or infinite; `found` says which, and where."""
        step = self._saved[0]
        last = f"ckpt-{step} is the last good checkpoint" if step else "no checkpoint was saved yet"
        return Error(f"{found}; {last}. Try a lower --learning_rate in another --workdir.")
