"""Restores a run, saves it, keeps its best evaluation, and refuses what a resume would not continue exactly."""

import functools
import os

from mnist import Error, checkpoint
from mnist.checkpoint import Best, Watch, dump_state, fingerprint_of, names_of_attributes, resume
from mnist.data import identify
from mnist.model import describe_model, probe
from mnist.pictures import Look
from mnist.run.state import RunState
from mnist.step import TrainStep, describe_measuring

import tensorflow as tf


class Checkpointer:
    """The checkpoints of a run, `<workdir>/checkpoints`. Of several workers, only the chief reads and writes them.

    Args:
      step: a `TrainStep` that is not traced yet.
      dataset, workdir, plan, cluster, settings: the same as in `train_and_evaluate`.

    Attributes:
      variables: a dict from names to `tf.Variable`s. Everything that a checkpoint holds of the step.
      watch: the `Watch` over the step.
      best: the `Best` evaluation. None if the run keeps none, and on workers other than the chief.
    """

    def __init__(self, step, dataset, workdir, plan, cluster, settings=None):
        self._step, self._dataset, self._workdir, self._plan, self._cluster = step, dataset, workdir, plan, cluster
        self._directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._fingerprint = fingerprint_of(step, dataset, plan, settings)
        # Listed before tracing, because a new step would not have the variables that tracing may add.
        self.variables = checkpoint.variables_of(step)
        self.watch = Watch(step)
        dump_state(step.state)  # raises now for what no checkpoint could hold
        self._saved, self.best = (0, 0), None

    def add_to_fingerprint(self, name, value):
        """Makes a resume compare one more value, plain JSON."""
        self._fingerprint[name] = value

    def restore(self):
        """Restores the step from the newest sound checkpoint, if there is one.

        Returns: the `RunState`, and the order of the current epoch, int32 `[N]`, or None.
        Raises: `mnist.Error` as `resume.restore`.
        """
        step, dataset, plan = self._step, self._dataset, self._plan
        metadata, order = resume.restore(step, plan, self._fingerprint, self._directory, self._workdir, self._cluster)
        state = RunState.from_json(metadata or {})
        state.fingerprint = state.fingerprint or self._fingerprint
        state.measures, state.keep_best = describe_measuring(step), plan.best
        state.dataset, state.data_dir, state.classes = dataset.name, dataset.data_dir, dataset.classes
        state.dataset_sha256 = identify(self._fingerprint["dataset"]["sha256"], dataset.classes)
        state.validation_sha256, state.test_sha256 = dataset.validation.digest(), dataset.test.digest()
        self._saved = (state.step, len(state.history))
        if plan.best and self._cluster.is_chief:
            self.best = Best(self._directory, *plan.best, state.history)
        return state, order

    def check_traced(self, state, digest):
        """Raises `mnist.Error` if the traced step computes something else than it did, or than it does on the chief."""
        otherwise = "computes another step than the chief: give all the same code"
        self._cluster.check_same(digest, otherwise, self._cluster.timeout)
        if state.traced not in (None, digest):
            raise Error(
                f"{self._workdir} holds a run whose step computed something else: its code, or what it reads, has "
                "changed. Resume it with the same, or take another --workdir."
            )
        state.traced = digest

    def is_new(self, state):
        """Returns whether the state has steps or evaluations that no checkpoint has."""
        return state.step > 0 and (state.step, len(state.history)) != self._saved

    def save(self, state, order):
        """Saves a `RunState`, the order of its epoch, int32 `[N]`, and the step.

        Raises: `mnist.Error` as `Watch.check`, or if workers have different weights. Also if a weight is not finite, or
          the disk is full or read-only.
        """
        self.watch.check("while the run trained")
        self._step.update_eval_model()
        self._cluster.check_same(
            [checkpoint.digest(self._tensors()), dump_state(self._step.state)] if self._cluster.workers > 1 else 0,
            "has other weights than the chief: its processor or its software computes otherwise, or the step keeps "
            "something to itself. Nothing of this was saved",
        )
        if self._cluster.is_chief:
            self._write(self._directory, state, order, self._plan.keep_checkpoints)
        self._saved = (state.step, len(state.history))

    def allow_other_hooks(self):
        """Lets a resume from the last checkpoint have other hooks, and attributes for them, because this one raises."""
        step = self._saved[0]
        if self._cluster.is_chief and step:
            tensors, metadata = checkpoint.load(self._directory, step)
            metadata["fingerprint"] |= {"epoch_order": None, "reads": None}
            metadata["other_hooks"] = names_of_attributes(self._step)  # of the hooks that raise
            tensors = {name: tf.constant(value) for name, value in tensors.items()}
            checkpoint.save(self._directory, tensors, metadata, self._plan.keep_checkpoints)

    def save_best(self, state, order):
        """Saves the newest evaluation as the best, in place of the one before."""
        # A process that was killed may have left a later one, which this run will reach again.
        checkpoint.remove_newer(self.best.directory, state.step)
        self._write(self.best.directory, state, order, keep=1)

    def _tensors(self):
        return self.variables | checkpoint.variables_of_eval_model(self._step)

    @functools.cached_property
    def _look(self):
        """The `Look` of the training images, which `mnist.predict` reads, a dict of tensors."""
        look = Look.of(self._dataset.train.images)
        return {f"look/{name}": tf.constant(value) for name, value in look._asdict().items()}

    def _write(self, directory, state, order, keep):
        extra = {"answers": tf.constant(probe(self._step.eval_model))} | self._look
        if type(self._step).epoch_order is not TrainStep.epoch_order:
            extra["order"] = order  # it may depend on what the step had learnt when the epoch began
        metadata = state.to_json() | {
            "model": describe_model(self._step.eval_model),
            "state": dump_state(self._step.state),
        }
        try:
            checkpoint.save(directory, self._tensors(), metadata, keep, extra)
        except checkpoint.NotFinite as error:
            raise self.not_finite(f"{error} is not finite at step {state.step}") from None

    def check_finite(self, step_number):
        """Raises `mnist.Error` if a variable is NaN or infinite after a step.

        The loss may hide it, because max pooling of NaN is -3.4e38, relu of that is 0, and neither has a gradient.
        """
        try:
            checkpoint.check_finite(self.variables)
        except checkpoint.NotFinite as error:
            raise self.not_finite(f"{error} is not finite at step {step_number}") from None

    def not_finite(self, found):
        """Returns an `mnist.Error` that names the last good checkpoint. `found` is the number that is not finite."""
        return self.stopped(found, "Try a lower --learning_rate in another --workdir")

    def stopped(self, found, advice):
        """Returns an `mnist.Error` that names the last good checkpoint, given what was found and what helps."""
        step = self._saved[0]
        last = f"ckpt-{step} is the last good checkpoint" if step else "no checkpoint was saved yet"
        return Error(f"{found}; {last}. {advice}.")
