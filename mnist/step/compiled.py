"""The loop over a step, compiled, once the step is known to be one that a resume can continue exactly."""

import contextlib
import tempfile

from mnist.checkpoint import traced
from mnist.step.train_step import alone, compile_step, make_train_loop

import numpy as np
import tensorflow as tf


def compile_loop(step, spec, variables, jit_compile, open_writer):
    """Compiles a step and checks what it computes, before anything of it is written.

    Args:
      step: a `TrainStep`, its `view` that of the run.
      spec: of the tensors of a batch, a tuple.
      variables: all that a checkpoint holds, a dict from names to `tf.Variable`s.
      jit_compile: whether XLA compiles it.
      open_writer: returns the `tf.summary` writer of what the step writes itself; called if it does. None: nothing is
        written, as XLA has no word for it, and of many processes the chief alone writes.

    Returns: a function that makes a `Loop`, the graph of the step, and a digest of what it computes, whoever shares it
      and whatever it shows.
    Raises: `mnist.Error` as `traced.check_step`.
    """
    with contextlib.ExitStack() as stack:
        if open_writer and not jit_compile:  # nobody knows yet whether the step writes: to nowhere
            step.view.writer = tf.summary.create_file_writer(stack.enter_context(tempfile.TemporaryDirectory()))
        compiled, train_loop = make_train_loop(step, jit_compile=jit_compile)
        train_step, function = compiled, compiled.get_concrete_function(*spec)
        writes, step.view.writer = step.view.is_written(function), None
        cluster = step.replicas.cluster  # all of whose processes have to trace alike: collectives are numbered
        writes = any(cluster.agree(writes, cluster.timeout))
    if step.slices > 1 or writes:
        with alone(step):
            train_step = compile_step(step, jit_compile=jit_compile)
            function = train_step.get_concrete_function(*spec)
    digest = traced.check_step(function, variables, train_step if jit_compile else None)

    def make_loop():
        if not writes:
            return Loop(step, compiled, train_loop)
        step.view.writer = open_writer and open_writer()
        return Loop(step, *make_train_loop(step, jit_compile=jit_compile))

    return make_loop, function.graph, digest


class Loop:
    """Trains some steps in one call into the graph, but for those that `step.view` looks at: these one by one.

    To look from within the loop costs each of its steps 2 %.

    Args:
      step: a `TrainStep`.
      train_step, train_loop: of `make_train_loop`.
    """

    def __init__(self, step, train_step, train_loop):
        self._step, self._train_step, self._train_loop = step, train_step, train_loop

    def __call__(self, batches, first, num_steps):
        """Trains steps from number `first` on; ends after one whose loss is not finite.

        Args:
          batches: an iterator over batches.

        Returns: a dict of the step's scalars and the learning rates, float32 NumPy arrays `[steps done]` each.
        """
        parts, end = [], first + num_steps
        while first < end:
            look = self._step.view.next_look(first)
            if look == first:
                parts.append(self._look(batches, first))
            else:
                scalars, rates = self._train_loop(batches, tf.constant(min(look, end) - first))
                parts.append(({name: values.numpy() for name, values in scalars.items()}, rates.numpy()))
            first += len(parts[-1][1])
            if not np.isfinite(parts[-1][0]["loss"]).all():
                break
        scalars = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
        return scalars, np.concatenate([rates for _, rates in parts])

    def trace(self, batches):
        """Traces all at once, so that no clock counts it."""
        self._train_loop(batches, tf.constant(0))

    def _look(self, batches, number):
        rate = np.array([self._step.optimizer.learning_rate], np.float32)
        scalars = self._step.view.look(self._step, number, lambda: self._train_step(*next(batches)))
        return {name: np.array([value], np.float32) for name, value in scalars.items()}, rate
