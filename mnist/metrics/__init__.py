"""Metrics of predictions, their reports, and robustness. Importing this room does not import TensorFlow."""

from mnist.metrics import seeds
from mnist.metrics.predictions import (
    Calibration,
    RunningMeans,
    calibration,
    compute_metrics,
    count_confusions,
    example_losses,
    is_lower_better,
    softmax,
    wilson_interval,
)
from mnist.metrics.report import format_evaluation, format_robustness, format_table
from mnist.metrics.robustness import measure_robustness

__all__ = [
    "Calibration",
    "RunningMeans",
    "calibration",
    "compute_metrics",
    "count_confusions",
    "example_losses",
    "format_evaluation",
    "format_robustness",
    "format_table",
    "is_lower_better",
    "measure_robustness",
    "seeds",
    "softmax",
    "wilson_interval",
]
