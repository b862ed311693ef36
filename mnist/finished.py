"""A run that has saved, loaded by another command: its model, its data, its history."""

import dataclasses
import functools
import os

from mnist import Error, checkpoint, data
from mnist.readers import DIGITS
from mnist.rebuild import rebuild
from mnist.settings import local_path

import keras


@dataclasses.dataclass
class Run:
    """What is left of a run.

    Attributes:
      model: the evaluated `keras.Model`, with the weights of the newest checkpoint.
      step: that checkpoint's step.
      history: a list of dicts, one for each evaluation: `step`, `train_<metric>`, `validation_<metric>`.
      dataset, data_dir: what `data.load` needs to bring the run's data again.
      classes: a tuple of the names of its classes; its length is the number of the model's logits.
      framed: whether its training images are framed as MNIST's, `data.Dataset.is_framed`.
    """

    model: keras.Model
    step: int
    history: list
    dataset: str
    data_dir: str | None
    classes: tuple[str, ...]
    framed: bool = True

    @functools.cached_property
    def data(self):
        """The run's `data.Dataset`, read when it is first asked for; without a hold-out."""
        return data.load(self.dataset, self.data_dir)


def load(workdir):
    """Loads a run, finished or not, from its newest checkpoint. Returns: a `Run`. Raises: `mnist.Error`."""
    if not workdir:
        raise Error("--workdir is missing: name the folder of a run, as in --workdir=runs/first.")
    workdir = local_path(workdir)
    if not os.path.isdir(workdir):
        raise Error(f"--workdir={workdir} is not a folder. Train first: python -m mnist.train.")
    loaded = checkpoint.load_newest(os.path.join(workdir, "checkpoints"))
    if loaded is None:
        raise Error(f"--workdir={workdir} holds no checkpoint. Train first: python -m mnist.train.")
    tensors, metadata = loaded
    count = sum(name.startswith("eval_model/") for name in tensors)
    weights = [tensors[f"eval_model/{i}"] for i in range(count)]
    model = rebuild(metadata["model"], weights, tensors.get("run/answers"), f"the model of {workdir}")
    # An older version knew of ten classes alone, and of one frame.
    classes, framed = tuple(metadata.get("classes", DIGITS)), metadata.get("framed", True)
    return Run(model, metadata["step"], metadata["history"], metadata["dataset"], metadata["data_dir"], classes, framed)
