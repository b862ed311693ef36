"""One update of the weights in pieces that research overrides, and the compiled loop over it."""

from mnist.step.context import Context
from mnist.step.inner_loop import compile_loop, compile_step, make_train_loop
from mnist.step.measures import check_extra_metrics, describe_measuring, restore_step
from mnist.step.norms import counts, names_of, square
from mnist.step.recompute import Recomputation, StepFailed
from mnist.step.self_check import check_compiled
from mnist.step.train_step import TrainStep
from mnist.step.used_settings import check_methods_are_called, check_settings_are_used
from mnist.step.view import View

__all__ = [
    "Context",
    "Recomputation",
    "StepFailed",
    "TrainStep",
    "View",
    "check_compiled",
    "check_extra_metrics",
    "check_methods_are_called",
    "check_settings_are_used",
    "compile_loop",
    "compile_step",
    "counts",
    "describe_measuring",
    "make_train_loop",
    "names_of",
    "restore_step",
    "square",
]
