"""The compiled step, and the loop over it that runs in a graph."""

import contextlib
import functools
import re
import tempfile

from mnist import Error, checkpoint
from mnist.checkpoint import traced
from mnist.step.context import Context
from mnist.step.recompute import Recomputation, StepFailed
from mnist.step.train_step import NORM_OVERFLOWS, NOT_A_DISTRIBUTION

import numpy as np
import tensorflow as tf


def compile_step(step, context=None):
    """Compiles a `TrainStep`, which uses a `Context` while it is traced. Default: `Context()`.

    Returns: a `tf.function` of the tensors of a batch, which returns the scalars of the step and its gradients.
    """
    context = context or Context()
    # XLA has no kernel for the collective gather of several slices, so it compiles each slice separately.
    return tf.function(_make_update(step, context), jit_compile=context.jit_compile and step.slices == 1)


def _make_update(step, context):
    def train_step(images, labels, *more):
        done = step.iterations.read_value()
        with context.tracing(step):
            scalars = step(images, labels, *more)
        step.iterations.assign(done + 1)  # also if a subclass replaces __call__ or calls it twice
        return scalars, context.gradients

    return train_step


def make_train_loop(step, context=None):
    """Compiles a step, and a loop over it that enters Python once for many steps.

    Returns: the function of `compile_step`, and `train_loop(iterator, num_steps)`. The loop takes an iterator over
      batches and an int32 scalar tensor. It stops after the first step whose loss is not finite. It returns a dict of
      the scalars and the learning rates, all float32 tensors `[steps done]`.
    """
    train_step = compile_step(step, context)

    @tf.function
    def train_loop(iterator, num_steps):
        names = sorted(train_step.get_concrete_function(*iterator.element_spec).structured_outputs[0])
        rates, *scalars = [tf.TensorArray(tf.float32, num_steps, element_shape=[]) for _ in range(len(names) + 1)]
        done, finite = 0, True
        while done < num_steps and finite:
            batch = next(iterator)
            rates = rates.write(done, tf.cast(step.optimizer.learning_rate, tf.float32))
            result, _ = train_step(*batch)
            scalars = [
                array.write(done, tf.cast(result[name], tf.float32)) for array, name in zip(scalars, names, strict=True)
            ]
            finite = tf.math.is_finite(result["loss"])
            done += 1
        scalars = {name: array.stack()[:done] for name, array in zip(names, scalars, strict=True)}
        return scalars, rates.stack()[:done]

    return train_step, train_loop


def compile_loop(step, context, spec, variables, open_writer, verify_every=0):
    """Compiles a step and checks what it computes, before the run writes anything.

    Args:
      step, context: a `TrainStep`, and the `Context` that it uses from now on.
      spec: a tuple of `tf.TensorSpec`s. The images, the labels and further tensors of a batch.
      variables: a dict from names to `tf.Variable`s. Everything that a checkpoint holds.
      open_writer: a function that returns the `tf.summary` writer, called only if the step writes summaries of its own.
        None: this process writes nothing.
      verify_every: an int. The steps from one that is computed twice to the next. Default 0: none.

    Returns: a function that makes a `Loop`, the concrete function of the step, and a digest of what it computes. Of
      several slices it is a function without collectives. The digest depends neither on who shares the run nor on what
      the step writes.
    Raises: `mnist.Error` as `traced.check_step`, or if the loss depends on a variable that nothing trains.
    """
    step._context, view, cluster = context, context.view, context.replicas.cluster
    with contextlib.ExitStack() as stack:
        if open_writer and not context.jit_compile:  # XLA has no kernel for tf.summary
            view.writer = tf.summary.create_file_writer(stack.enter_context(tempfile.TemporaryDirectory()))
        compiled, train_loop = make_train_loop(step, context)
        traced_step, function = compiled, compiled.get_concrete_function(*spec)
        # All processes have to trace the same number of times, because TensorFlow numbers the collectives.
        writes = any(cluster.agree(view.is_written(function), cluster.timeout))
        view.writer = None
    _check_untrained(step, context.untrained, function.graph, variables)
    if step.slices > 1 or writes:
        traced_step = tf.function(_make_update(step, Context()), jit_compile=context.jit_compile)
        function = traced_step.get_concrete_function(*spec)
    digest = traced.check_step(function, variables, traced_step if context.jit_compile else None)

    recomputation = Recomputation(step, variables, verify_every, cluster)

    def make_loop():
        if not writes:
            return Loop(step, context, recomputation, compiled, train_loop)
        view.writer = open_writer and open_writer()
        return Loop(step, context, recomputation, *make_train_loop(step, context))

    return make_loop, function, digest


def _check_untrained(step, untrained, graph, variables):
    """Raises `mnist.Error` for a variable of the checkpoint that the loss depends on and nothing writes."""
    frozen = {id(v.value) for part in checkpoint.layers_of(step) for v in part.non_trainable_variables}
    written = checkpoint.written_variables(graph, untrained)
    for name, variable in variables.items():
        if any(variable is v for v in untrained) and id(variable) not in frozen | {id(v) for v in written}:
            raise Error(
                f"the loss of {type(step).__name__} depends on {name} ({variable.name.partition(':')[0]}), which "
                "nothing trains: return it from trained_variables, stop its gradient, or set trainable=False."
            )


class Loop:
    """A loop that trains many steps in one call into the graph. It takes measured and recomputed steps one by one.

    To measure within the graph would slow each step down by 2 %.

    Args:
      step, context: a `TrainStep`, and the `Context` that it was compiled with.
      recomputation: a `Recomputation`, which takes some steps twice.
      train_step, train_loop: the two functions that `make_train_loop` returned.
    """

    def __init__(self, step, context, recomputation, train_step, train_loop):
        self._step, self._view, self._recomputation = step, context.view, recomputation
        self._train_step, self._train_loop = train_step, train_loop

    def __call__(self, batches, first, num_steps):
        """Trains `num_steps` from step `first` on, and stops after a step whose loss is not finite.

        Returns: a dict of the step's scalars, and the learning rates, all float32 NumPy arrays `[steps done]`.
        Raises: `mnist.Error` for labels that the loss of `TrainStep` cannot take. `StepFailed` if --clipnorm cannot
          clip, or if a step has other bits when it is computed again.
        """
        try:
            return self._train(batches, first, num_steps)
        except tf.errors.InvalidArgumentError as error:
            if NOT_A_DISTRIBUTION in str(error):
                raise Error(NOT_A_DISTRIBUTION) from None
            if match := re.search(rf"{NORM_OVERFLOWS} \S*\w", str(error)):
                found = f"{match[0]} within steps {first} to {first + num_steps - 1}"
                raise StepFailed(found, "Try a lower --learning_rate in another --workdir") from None
            raise

    def _train(self, batches, first, num_steps):
        parts, end = [], first + num_steps
        while first < end:
            alone = min(self._view.next_look(first), self._recomputation.next_step(first))
            if alone == first:
                parts.append(self._take_alone(batches, first))
            else:
                scalars, rates = self._train_loop(batches, tf.constant(min(alone, end) - first))
                parts.append(({name: values.numpy() for name, values in scalars.items()}, rates.numpy()))
            first += len(parts[-1][1])
            if not np.isfinite(parts[-1][0]["loss"]).all():
                break
        scalars = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
        return scalars, np.concatenate([rates for _, rates in parts])

    def trace(self, batches):
        """Traces the loop, so that no clock counts the time that this takes."""
        self._train_loop(batches, tf.constant(0))

    def _take_alone(self, batches, number):
        """Takes a step that is measured, or computed twice, or both."""
        rate, batch = np.array([self._step.optimizer.learning_rate], np.float32), next(batches)
        take_step = functools.partial(self._train_step, *batch)
        if self._recomputation.next_step(number) == number:
            take_step = functools.partial(self._recomputation.take, number, take_step)
        measured = self._view.next_look(number) == number
        scalars = self._view.look(self._step, number, take_step) if measured else take_step()[0]
        return {name: np.array([value], np.float32) for name, value in scalars.items()}, rate
