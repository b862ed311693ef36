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
    tensors, metadata = _read(workdir, str(which))
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


def check_source(flag, classes, dataset_sha256, dataset, may_differ=False):
    """Checks that a run may pass on what it learnt to another run, and warns if it was trained on other data.

    Args:
      flag: a string. The flag that names the run, for messages.
      classes, dataset_sha256: the attributes of the `Run`.
      dataset: the `data.Dataset` of the other run.
      may_differ: a bool. Whether the other run may have other classes.

    Raises: `mnist.Error` as `data.check_same_classes`.
    """
    try:
        data.check_same_classes(classes, dataset.classes, "that run", dataset.name, may_differ)
    except Error as error:
        raise Error(f"{flag}: {error}") from None
    if dataset_sha256 not in (None, dataset.digest()):
        logging.warning(
            "%s was trained on other data than this run has: it may have learnt images that validate here.", flag
        )


def take_weights(model, workdir, dataset):
    """Assigns the weights of a run to a model, for more training on a `data.Dataset`.

    Raises: `mnist.Error` if the weights do not fit, or as `check_source`.
    """
    try:
        run = load(workdir)
    except Error as error:
        raise Error(f"--init_from={workdir}: {error}") from None
    check_source(f"--init_from={workdir}", run.classes, run.dataset_sha256, dataset, may_differ=True)
    theirs = run.model
    values = [variable.numpy() for variable in theirs.weights]  # weights exclude the seeds of layers
    shapes, shapes_there = ([tuple(x.shape) for x in arrays] for arrays in (model.weights, values))
    if shapes != shapes_there:
        what = f"it has {len(values)} variables, this one has {len(shapes)}"
        for variable, here, there in zip(model.weights, shapes, shapes_there, strict=False):
            if here != there:
                what = f"{variable.path} is {list(there)} there, {list(here)} here"
                break
        raise Error(f"--init_from={workdir} is the run of another model: {what}.")
    names = type(theirs).__name__, type(model).__name__
    if names[0] != names[1]:
        logging.warning("--init_from=%s: its weights fit, but are of a %s; this is a %s.", workdir, *names)
    for variable, value in zip(model.weights, values, strict=True):
        variable.assign(value)


def take_state(step, workdir):
    """Assigns the state of a run to a step that has its weights and an optimizer of `count_on`, to continue it.

    Assigns the weights as they were trained, not as they were evaluated, the slots of the weights that both train, and
    the step's own variables. The number of updates and the learning rate stay.

    Raises: `mnist.Error` if the optimizers are different.
    """
    tensors, metadata = _read(local_path(workdir), "newest")
    there, optimizer = metadata["fingerprint"]["optimizer"], step.optimizer
    if there["class"] != type(optimizer).__name__:
        found = f"{workdir} was trained by {there['class']}, this run has {type(optimizer).__name__}"
        raise Error(f"--init_optimizer: {found}: take the same --optimizer, or leave out the flag.")
    model = load(workdir).model
    for layer, description in zip(
        model._flatten_layers(include_self=False), metadata["fingerprint"]["model"].get("layers", []), strict=True
    ):
        layer.trainable = description.get("config", description).get("trainable", True)
    is_constant = isinstance(there["config"]["learning_rate"], float)
    rate = 0.1 if is_constant else keras.optimizers.schedules.CosineDecay(0.1, 1)
    old, new = _places(optimizer, model, rate), _places(optimizer, step.model, variables=step.trained_variables())
    count = sum(name.startswith("optimizer/") for name in tensors)
    if count not in (len(old), len(old) - 1):  # without `updates_before`, which is the last
        found = f"the optimizer of {workdir} has other settings, as momentum, or other variables than the model's"
        raise Error(f"--init_optimizer: {found}: take the same, or leave out the flag.")
    before = tensors.get(f"optimizer/{old['updates_before', None]}", 0)
    for key, place in new.items():
        if key in old and key[0] not in ("iteration", "learning_rate", "updates_before"):
            optimizer.variables[place].assign(tensors[f"optimizer/{old[key]}"])
    optimizer.variables[new["updates_before", None]].assign(tensors["optimizer/0"] + before)
    weights = {id(variable.value) for variable in step.model.weights}  # without the seeds of layers
    for name, variable in checkpoint.variables_of(step).items():
        if name.startswith("iterations/"):  # counts the batches of this run
            continue
        is_own = not name.startswith(("model/", "optimizer/"))
        if is_own and getattr(tensors.get(name), "shape", None) != tuple(variable.shape):
            logging.warning("--init_optimizer: %s of the step starts fresh, because it does not fit %s.", name, workdir)
        elif is_own or id(variable) in weights:
            variable.assign(tensors[name])


def _places(optimizer, model, rate=None, variables=None):
    """Returns the place of each variable that an optimizer would have for a model, a dict.

    The keys are pairs: the name of a slot, and the number of the weight it belongs to, or None. For a variable that is
    not a weight of the model it is the path. `variables` are what it trains. Default: the model trains all of its own.
    """
    config = optimizer.get_config()
    copy = type(optimizer).from_config(config if rate is None else config | {"learning_rate": rate})
    numbers = {id(weight): i for i, weight in enumerate(model.weights)}
    found, add = {}, copy.add_variable_from_reference

    def record(reference, name=None, **options):
        variable = add(reference, name, **options)
        found[id(variable)] = name, numbers.get(id(reference), reference.path)
        return variable

    copy.add_variable_from_reference = record
    copy.build(model.trainable_variables if variables is None else variables)
    return {found.get(id(variable), (variable.name, None)): i for i, variable in enumerate(copy.variables)}


def _read(workdir, which):
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
