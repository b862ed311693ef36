"""The context of a step, which its methods read while TensorFlow traces them."""

import contextlib

from mnist import Error
from mnist.distributed import Replicas
from mnist.step.view import View

import tensorflow as tf


class Context:
    """The replicas, the view and the compiler of a step.

    Args:
      replicas: a `Replicas`. The devices and processes that share the slices of a batch. Default: this process alone.
      view: a `View`. The summaries that the step writes. Default: a view that writes nothing.
      jit_compile: a bool. Whether XLA compiles the step. Default: False.

    Attributes:
      slice_number: an int. The slice that is being traced, 0 outside of the loss.
      gradients: a list of tensors and Nones. The gradients of the update that was traced last.
      has_losses: a bool. Whether the loss that is being traced has the losses of the model.
      untrained: a list of `tf.Variable`s. The loss depends on them, and they are not among the trained ones.
    """

    def __init__(self, replicas=None, view=None, jit_compile=False):
        self.replicas, self.view, self.jit_compile = replicas or Replicas(), view or View(), jit_compile
        self.slice_number, self.gradients, self.has_losses, self.untrained = 0, [], False, []
        self.draws = 0  # the most calls of random_seed in a slice of the gradients that are being traced

    @contextlib.contextmanager
    def tracing(self, step):
        """Makes a `TrainStep` use this context while one of its updates is traced."""
        before, step._context = step._context, self
        self.gradients, self.untrained = [], []
        try:
            _forget_traces(step)
            with self.view.writing(step.iterations):
                yield
        finally:
            step._context = before

    @contextlib.contextmanager
    def tracing_slice(self, step, number):
        """Sets the number of the slice that is traced. Summaries of slices other than 0 are not recorded.

        Raises: `mnist.Error` if the slice draws in a function that was traced for another slice.
        """
        before, self.slice_number, self.has_losses = self.slice_number, number, False
        most, self.draws = self.draws, 0
        try:
            if step.slices > 1:
                _forget_traces(step)
            with self.view.recording(number == 0):
                yield
            if self.draws < most and step.slices > 1:
                raise Error(
                    f"compute_loss of {type(step).__name__} draws in a tf.function that all slices share, with equal "
                    "draws: decorate a method of the class instead."
                )
        finally:
            self.slice_number, self.draws = before, max(most, self.draws)

    @tf.autograph.experimental.do_not_convert
    def watched_others(self, tape, trained):
        """Returns the `tf.Variable`s that a tape watched beside the trained ones. An empty list outside of a graph."""
        known = {id(variable) for variable in trained}
        watched = tape.watched_variables() if tf.inside_function() else ()
        return [variable for variable in watched if id(variable) not in known]

    @tf.autograph.experimental.do_not_convert
    def take_others(self, gradients, others):
        """Returns the gradients of the trained variables. Stores which other variables have a gradient."""
        count = len(gradients) - len(others)
        pairs = zip(others, gradients[count:], strict=True)
        self.untrained += [variable for variable, gradient in pairs if gradient is not None]
        return gradients[:count]


def _forget_traces(step):
    """Makes TensorFlow trace each method of a step again that `tf.function` decorates.

    Otherwise it would use the graph of another slice, with the tensors and the Python values of that slice.
    """
    for cls in type(step).__mro__:
        for value in vars(cls).values():
            getattr(value, "_descriptor_cache", {}).pop(step, None)  # TensorFlow has no public name for it
