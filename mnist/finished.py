"""A run that has saved, loaded by another command: its model, its data, its history."""

import dataclasses
import functools
import os

from mnist import Error, checkpoint, data
from mnist.readers import DIGITS
from mnist.rebuild import rebuild
from mnist.settings import local_path

import keras
from absl import logging


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
      test_sha256: the digest of its test set; None if an older version did not save it.
      workdir: its folder as it was given, for messages.
    """

    model: keras.Model
    step: int
    history: list
    dataset: str
    data_dir: str | None
    classes: tuple[str, ...]
    framed: bool
    test_sha256: str | None
    workdir: str

    @functools.cached_property
    def data(self):
        """The run's `data.Dataset`, read when it is first asked for; without a hold-out.

        Warns if its test set is no longer that of the run.
        """
        dataset = data.load(self.dataset, self.data_dir)
        if self.test_sha256 not in (None, dataset.test.digest()):
            place = f"{dataset.name} in {self.data_dir}" if self.data_dir else dataset.name
            logging.warning("The test set of %s has changed since %s was trained.", place, self.workdir)
        return dataset

    def check_labels(self, dataset):
        """Raises `mnist.Error` if the test set of a `data.Dataset` has labels that the model does not know."""
        last = dataset.test.labels.max()
        if last >= len(self.classes):
            raise Error(
                f"the model of {self.workdir} knows {len(self.classes)} classes, {dataset.name} has test labels up to "
                f"{last}."
            )


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
    return Run(
        model=model,
        **{name: metadata[name] for name in ("step", "history", "dataset", "data_dir")},
        classes=tuple(metadata.get("classes", DIGITS)),  # an older version knew of ten alone
        framed=metadata.get("framed", True),
        test_sha256=metadata.get("test_sha256"),
        workdir=workdir,
    )
