"""TensorBoard's HParams tab: a row for each run, which the run itself writes."""

import contextlib
import math
import os
import tempfile

from mnist.metrics import is_lower_better
from mnist.settings import settings_of

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hp

# Its event file, which a run that resumes writes anew. TensorBoard, which reads files in the order of their names and
# returns to none, takes it first.
_FILE = "events.out.tfevents.0.hparams"


def write(folder, values, workdir):
    """Writes the row of a run: its name and its hyperparameters. The tab finds names and ranges itself.

    Args:
      folder: of the event files that have the metrics.
      values: a dict of plain values; of each the default, too, as `(value, default)`.
      workdir: the run's folder, whose last part begins the name.
    """
    shown = {name: _plain(value) for name, (value, _) in values.items() if value is not None}
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        writer = tf.summary.create_file_writer(temporary)
        with contextlib.closing(writer), writer.as_default(step=0):
            hp.hparams(shown, trial_id=trial_name(values, workdir))
        os.replace(os.path.join(temporary, *os.listdir(temporary)), os.path.join(folder, _FILE))


def of(step, plan):
    """The values of a run that no command has started: settings of the plan and of the step, and what else counts."""
    values = {"optimizer": (type(step.optimizer).__name__.lower(), "adam"), "seed": (step.seed, 0)}
    rate = step.optimizer.get_config().get("learning_rate")  # of a schedule what Keras tells of it
    rate = (
        float(str(np.float32(rate))) if isinstance(rate, float) else (rate or {}).get("class_name")
    )  # as it was typed
    values["learning_rate"] = (rate, 1e-3)
    for part in (plan, step):
        for name, setting in settings_of(type(part)).items():
            if not setting.may_change or setting.group == "length":
                values[name] = (getattr(part, name), setting.default)
    return values


def trial_name(values, workdir):
    """What tells a run from others: its folder, and what it has other than defaults, as `first learning_rate=0.01`."""
    different = [f"{name}={_plain(value)}" for name, (value, default) in values.items() if value != default]
    folder = os.path.basename(os.path.abspath(workdir))
    # The folders of a sweep say some of this already.
    return " ".join([*([] if folder in different else [folder]), *different])


def _plain(value):
    """A value as the tab takes it: a number, a truth value or a text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return value if isinstance(value, (bool, int, float)) else str(value)


def results_of(results, history):
    """The columns of metrics: those of the test set, last and best of validation, seconds. A dict of finite numbers.

    Args:
      results: the content of `results.json`.
      history: of the run.
    """
    found = {name: value for name, value in results.items() if name.startswith(("test_", "validation_"))}
    for name in [name for name in history[-1] if name.startswith("validation_")]:
        values = [entry[name] for entry in history if math.isfinite(entry.get(name, math.nan))]
        if values:
            found[f"best_{name}"] = (min if is_lower_better(name) else max)(values)
    found |= {"train_seconds": results["train_seconds"]}
    return {name: value for name, value in found.items() if math.isfinite(value)}
