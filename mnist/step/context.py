"""The context of a step, which its methods read while TensorFlow traces them."""

import contextlib

from mnist.distributed import Replicas
from mnist.step.view import View


class Context:
    """The replicas, the view and the compiler of a step.

    Args:
      replicas: a `Replicas`. The devices and processes that share the slices of a batch. Default: this process alone.
      view: a `View`. The summaries that the step writes. Default: a view that writes nothing.
      jit_compile: a bool. Whether XLA compiles the step. Default: False.

    Attributes:
      slice_number: an int. The slice that is being traced, 0 outside of the loss.
      gradients: a list of tensors and Nones. The gradients of the update that was traced last.
    """

    def __init__(self, replicas=None, view=None, jit_compile=False):
        self.replicas, self.view, self.jit_compile = replicas or Replicas(), view or View(), jit_compile
        self.slice_number, self.gradients = 0, []

    @contextlib.contextmanager
    def tracing(self, step):
        """Makes a `TrainStep` use this context while one of its updates is traced."""
        before, step._context = step._context, self
        self.gradients = []
        try:
            with self.view.writing(step.iterations):
                yield
        finally:
            step._context = before

    @contextlib.contextmanager
    def tracing_slice(self, number):
        """Sets the number of the slice that is traced. Summaries of slices other than 0 are not recorded."""
        before, self.slice_number = self.slice_number, number
        try:
            with self.view.recording(number == 0):
                yield
        finally:
            self.slice_number = before
