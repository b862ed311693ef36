"""The loop over a step, compiled, once the step is known to be one that a resume can continue exactly."""

import contextlib
import tempfile

from mnist import traced
from mnist.step import alone, compile_step, make_train_loop

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

    Returns: a function that makes the `train_loop` of `make_train_loop`, the graph of the step, and a digest of what
      it computes, whoever shares it and whatever it shows.
    Raises: `mnist.Error` as `traced.check_step`.
    """
    with contextlib.ExitStack() as stack:
        if open_writer and not jit_compile:  # nobody knows yet whether the step writes: to nowhere
            step.view.writer = tf.summary.create_file_writer(stack.enter_context(tempfile.TemporaryDirectory()))
        train_step, train_loop = make_train_loop(step, jit_compile=jit_compile)
        function = train_step.get_concrete_function(*spec)
        writes, step.view.writer = step.view.is_written(function), None
    if step.slices > 1 or writes:
        with alone(step):
            train_step = compile_step(step, jit_compile=jit_compile)
            function = train_step.get_concrete_function(*spec)
    digest = traced.check_step(function, variables, train_step if jit_compile else None)

    def make_loop():
        if not writes:
            return train_loop
        step.view.writer = open_writer()
        return make_train_loop(step, jit_compile=jit_compile)[1]

    return make_loop, function.graph, digest
