"""A saved run, loaded by another command: its model, its data, its history."""

import dataclasses
import functools
import os

from mnist import Error, checkpoint, data
from mnist.checkpoint import best
from mnist.data import DIGITS, HOLDOUTS
from mnist.metrics import softmax
from mnist.model import make_predict_logits, rebuild
from mnist.pictures import Look
from mnist.settings import Setting, local_path
from mnist.step import check_extra_metrics, restore_step

import keras
import numpy as np
from absl import logging


@dataclasses.dataclass
class Run:
    """A run as a checkpoint holds it.

    Attributes:
      model: the evaluated `keras.Model`, with the weights of the checkpoint.
      step: an int. The step of the checkpoint.
      history: a list of dicts, one for each evaluation: `step`, `train_<metric>`, `validation_<metric>`.
      dataset: the name of the data, an argument of `data.load`.
      data_dir: the folder of the data, the other argument.
      classes: a tuple with the name of each class, which is each logit of the model.
      dataset_sha256: the digest of the data set with its hold-out, or None if an older version did not save it.
      test_sha256: the digest of the test set, or None if an older version did not save it.
      workdir: the folder of the run as it was given, for messages.
      tensors: a dict from names to all arrays of the checkpoint.
      measures: the result of `step.describe_measuring`, or None.
      images: ints. The number of training, validation and test images, or None if an older version did not save it.
      state: a dict. The `state` of the step, or None.
    """

    model: keras.Model
    step: int
    history: list
    dataset: str
    data_dir: str | None
    classes: tuple[str, ...]
    dataset_sha256: str | None
    test_sha256: str | None
    workdir: str
    tensors: dict = dataclasses.field(repr=False)
    measures: dict | None
    images: list | None = None
    state: dict | None = None

    @functools.cached_property
    def data(self):
        """The run's `data.Dataset` without a hold-out, read at the first use.

        Warns if the test set has changed since the run.
        """
        dataset = data.load(self.dataset, self.data_dir)
        if self.test_sha256 not in (None, dataset.test.digest()):
            place = f"{dataset.name} in {self.data_dir}" if self.data_dir else dataset.name
            logging.warning("The test set of %s has changed since %s was trained.", place, self.workdir)
        return dataset

    @functools.cached_property
    def look(self):
        """The `pictures.Look` of the training images. An older version did not save it, and then it needs the data."""
        saved = {name: self.tensors.get(f"run/look/{name}") for name in Look._fields}
        if all(value is not None for value in saved.values()):
            return Look(**saved)
        try:
            return Look.of(self.data.train.images)
        except Error:
            logging.warning(
                "%s is of an older version, and its data are gone: pictures are framed as MNIST.", self.workdir
            )
            return data.look_of_digits()

    @functools.cached_property
    def predict(self):
        """A function from uint8 images `[N, 28, 28, 1]` to probabilities `[N, classes]` of the model."""
        predict_logits = make_predict_logits(self.model)
        return lambda images: softmax(predict_logits(images).numpy())

    def own_metrics(self, images, labels, logits):
        """Computes `extra_metrics` of the run's step.

        Args:
          images: uint8 `[N, 28, 28, 1]`.
          labels: integers `[N]`.
          logits: floats `[N, classes]`. The answers of the model.

        Returns: a dict from names to floats. It is empty if the step computes nothing of its own. It is also empty,
          with a warning, if the step cannot be made again.
        """
        if not self.measures:
            return {}
        try:
            step = restore_step(self.measures, self.model, self.tensors, self.state, self.workdir, self._own_data())
            step.view.part = "test"
            return check_extra_metrics(step.extra_metrics(images, labels, logits), {"loss", "accuracy"})
        except Exception as error:  # a user's class may raise any
            reason = " ".join(str(error).split())[:300]
            logging.warning("The metrics of %s itself are left out: %s", self.measures["name"], reason)
            return {}

    def _own_data(self):
        """Returns the run's `data.Dataset` as the run had it, with its hold-out. None if it cannot be loaded."""
        try:
            held = len(self.data.train.labels) - self.images[0] if self.images else 0
            ways = [self.data.hold_out(held, by) for by in HOLDOUTS] if held > 0 else [self.data]
            return next((dataset for dataset in ways if dataset.digest() == self.dataset_sha256), ways[0])
        except Error:
            return None

    def batch_losses(self):
        """Returns the loss of each step from the run's event files, without steps that a resumed run repeated.

        Returns: steps, int64 `[N]`, and losses, float32 `[N]`. None if there are no losses.
        """
        from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
        from tensorboard.util import tensor_util

        folder, tag = os.path.join(self.workdir, "train"), "batch/loss"
        if not os.path.isdir(folder):
            return None
        events = EventAccumulator(folder, tensor_size_guidance={"scalars": 0})  # 0 keeps all of them
        events.Reload()
        if tag not in events.Tags()["tensors"]:
            return None
        found = events.Tensors(tag)
        steps = np.array([event.step for event in found], np.int64)
        return steps, np.array([tensor_util.make_ndarray(event.tensor_proto) for event in found], np.float32)

    def check_labels(self, dataset):
        """Raises `mnist.Error` if a test label of a `data.Dataset` is not a class of the model, or has another name."""
        data.check_same_classes(self.classes, dataset.classes, self.workdir, dataset.name)
        last, count = dataset.test.labels.max(), len(self.classes)
        if last >= count:
            raise Error(
                f"the model of {self.workdir} has {count} classes, but {dataset.name} has test labels up to {last}."
            )


def which_checkpoint():
    """Returns the `Setting` for the argument `which` of `load`."""
    return Setting("newest", "Which checkpoint: newest, best (of --keep_best), or the number of a step.")


def load(workdir, which="newest"):
    """Loads a run, finished or not.

    Args:
      workdir: the folder of the run.
      which: "newest", "best" for the checkpoint of --keep_best, or the step of a checkpoint.

    Returns: a `Run`. Raises: `mnist.Error` if there is no such checkpoint, or if it cannot be read.
    """
    if not workdir:
        raise Error("--workdir is missing: name the folder of a run, as in --workdir=runs/first.")
    workdir = local_path(workdir)
    if not os.path.isdir(workdir):
        raise Error(f"{workdir} is not a folder with a run. Train first: python -m mnist.train.")
    tensors, metadata = read(workdir, str(which))
    count = sum(name.startswith("eval_model/") for name in tensors)
    weights = [tensors[f"eval_model/{i}"] for i in range(count)]
    model = rebuild(metadata["model"], weights, tensors.get("run/answers"), f"the model of {workdir}")
    of_run = (metadata.get("fingerprint") or {}).get("dataset")  # a text if an older version wrote it
    return Run(
        model=model,
        **{name: metadata[name] for name in ("step", "history", "dataset", "data_dir")},
        classes=tuple(metadata.get("classes", DIGITS)),  # an older version had ten classes only
        dataset_sha256=metadata.get("dataset_sha256"),
        test_sha256=metadata.get("test_sha256"),
        workdir=workdir,
        tensors=tensors,
        measures=metadata.get("measures"),
        images=of_run["images"] if isinstance(of_run, dict) else None,
        state=metadata.get("state"),
    )


def read(workdir, which):
    """Returns the tensors and the metadata of a checkpoint, both as dicts."""
    directory = os.path.join(workdir, "checkpoints")
    of_best = os.path.join(directory, best.FOLDER)
    if which == "newest":
        if loaded := checkpoint.load_newest(directory):
            return loaded
        raise Error(f"{workdir} holds no checkpoint. Train first: python -m mnist.train.")
    if which == "best":
        return best.load(directory, workdir)
    there = {str(step): folder for folder in (of_best, directory) for step in checkpoint.steps(folder)}
    if which in there:
        return checkpoint.load(there[which], int(which))
    found = ["newest", *(["best"] if checkpoint.steps(of_best) else []), *sorted(there, key=int)]
    raise Error(f"--checkpoint={which}: {workdir} has {', '.join(found)}.")
