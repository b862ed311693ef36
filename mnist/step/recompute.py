"""Computes a step twice from the same state, to find a processor or a memory that computes wrongly."""

import math

from mnist import Error
from mnist.step.norms import names_of

import numpy as np
import tensorflow as tf


class StepFailed(Error):
    """A step after which a run cannot go on. `advice` is a sentence without its full stop."""

    def __init__(self, found, advice):
        super().__init__(found)
        self.advice = advice


class Recomputation:
    """A check that takes every n-th step of a run twice, and compares every bit of its state, gradients and scalars.

    Args:
      step: a `TrainStep`.
      variables: a dict from names to `tf.Variable`s. Everything that the step writes.
      every: an int. The steps from one recomputed step to the next. 0: none.
      cluster: a `Cluster`. The processes that share the run, which all recompute the same steps.
    """

    def __init__(self, step, variables, every, cluster):
        self._step, self._variables, self._every, self._cluster = step, variables, every, cluster

    def next_step(self, number):
        """Returns the first of the steps 1, 1 + every, 1 + 2 every ... that is not before `number`. Infinity for none.

        A step's own summaries are mostly of other steps, so that few are written twice.
        """
        return 1 - (1 - number) // self._every * self._every if self._every else math.inf

    def take(self, number, take_step):
        """Takes step `number` twice from the same state.

        Args:
          take_step: a function without arguments, which returns the scalars and the gradients of the step.

        Returns: the scalars and the gradients.
        Raises: `StepFailed` if a bit differs. A third computation then shows which of the two was right.
        """
        before = self._copy()
        first, _ = self._compute(take_step)
        self._restore(before)
        second, found = self._compute(take_step)
        if not any(where := self._cluster.agree(self._first_difference(first, second, *found))):
            return found
        self._restore(before)
        third, _ = self._compute(take_step)
        right = self._cluster.agree([not self._first_difference(third, other, *found) for other in (first, second)])
        worker = next(i for i, place in enumerate(where) if place)
        agrees = {(True, False): "the first", (False, True): "the second"}.get(tuple(right[worker]), "neither")
        on = f" on worker {worker}" if self._cluster.workers > 1 else ""
        raise StepFailed(
            f"step {number} had other bits when it was computed again{on}, first in {where[worker]}: a third "
            f"computation agrees with {agrees}",
            "Test the memory and the processor of this machine, or look for an operation without fixed bits",
        )

    # Raw operations, because the methods of a variable would take a fifth of a step.

    def _copy(self):
        return [tf.raw_ops.ReadVariableOp(resource=v.handle, dtype=v.dtype) for v in self._variables.values()]

    def _restore(self, values):
        for variable, value in zip(self._variables.values(), values, strict=True):
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)

    def _compute(self, take_step):
        """Returns the tensors that a step computed, a list, and its scalars and gradients."""
        scalars, gradients = take_step()
        known = [tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None]
        return [*scalars.values(), *known, *self._copy()], (scalars, gradients)

    def _first_difference(self, one, other, scalars, gradients):
        """Returns the name of the first tensor whose bits differ in two computations, or "" if none do."""
        pairs = enumerate(zip(one, other, strict=True))
        different = [i for i, (a, b) in pairs if np.asarray(a).tobytes() != np.asarray(b).tobytes()]
        if not different:
            return ""
        layers = names_of(self._step.model, self._step.trained_variables())
        names = [*scalars]
        names += [f"the gradient of {'/'.join(x)}" for x, g in zip(layers, gradients, strict=True) if g is not None]
        names += [f"{name} ({getattr(v, 'path', v.name).partition(':')[0]})" for name, v in self._variables.items()]
        return names[different[0]]
