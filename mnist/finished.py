"""A run that has saved, loaded by another command: its model, its data, its history."""

import dataclasses
import functools
import importlib
import os
import sys

from mnist import Error, checkpoint, data
from mnist.model import describe
from mnist.readers import DIGITS
from mnist.settings import local_path

import keras
from absl import flags


@dataclasses.dataclass
class Run:
    """What is left of a run.

    Attributes:
      model: the evaluated `keras.Model`, with the weights of the newest checkpoint.
      step: that checkpoint's step.
      history: a list of dicts, one for each evaluation: `step`, `train_<metric>`, `validation_<metric>`.
      dataset, data_dir: what `data.load` needs to bring the run's data again.
      classes: a tuple of the names of its classes; its length is the number of the model's logits.
    """

    model: keras.Model
    step: int
    history: list
    dataset: str
    data_dir: str | None
    classes: tuple[str, ...]

    @functools.cached_property
    def data(self):
        """The run's `data.Dataset`, read when it is first asked for; without a hold-out."""
        return data.load(self.dataset, self.data_dir)


_importing = []  # modules of models that are being imported


def being_imported():
    """The name of the script that is imported for the model in it, and must not train; None outside of that."""
    return _importing[-1] if _importing else None


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
    model = _rebuild_model(workdir, metadata["model"], weights)
    classes = tuple(metadata.get("classes", DIGITS))  # an older version knew of ten alone
    return Run(model, metadata["step"], metadata["history"], metadata["dataset"], metadata["data_dir"], classes)


def describe_model(model):
    """All that another process needs to rebuild a model but its weights, as JSON; None if Keras cannot tell."""
    description = describe(model)
    if description is None:
        return None
    spec = sys.modules["__main__"].__spec__
    script = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    for part in _parts(description):
        if part.get("module", "") in (None, "__main__"):  # Keras has None for __main__; another process needs a name
            part["module"] = spec.name if spec else script
    return description


def _parts(description):
    """All dicts in what Keras serialized: of the model, its layers, whatever they hold."""
    if isinstance(description, dict):
        yield description
        description = list(description.values())
    if isinstance(description, (list, tuple)):
        for part in description:
            yield from _parts(part)


def _rebuild_model(workdir, description, weights):
    if description is None:
        raise Error(f"the model of {workdir} cannot be rebuilt: its class needs a get_config().")
    classes = _import_classes(description)
    try:
        model = keras.saving.deserialize_keras_object(description, custom_objects=classes)
    except (TypeError, ValueError) as error:  # Keras' own for what it does not find and what it holds to be unsafe
        raise Error(f"the model of {workdir} cannot be rebuilt: {' '.join(str(error).split())[:200]}") from None
    if [array.shape for array in weights] != [tuple(variable.shape) for variable in model.variables]:
        raise Error(f"the model of {workdir} cannot be rebuilt: what its get_config() tells has other variables.")
    for variable, array in zip(model.variables, weights, strict=True):
        variable.assign(array)
    return model


def _import_classes(description):
    """Imports the modules of a model's classes and functions but for Keras' own. Returns: a dict from their names.

    A module may define flags, which must not take the place of this command's own.
    """
    own = {name: flags.FLAGS[name] for name in flags.FLAGS}
    overridable = {name: flag.allow_override for name, flag in own.items()}
    for flag in own.values():
        flag.allow_override = True
    classes = {}
    for part in _parts(description):
        module, name = part.get("module"), part.get("class_name")
        if not name or not module or module.partition(".")[0] in ("keras", "builtins"):
            continue
        name = part["config"] if name == "function" else name
        _importing.append(module)
        try:
            classes[name] = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise Error(
                f"the model's class is in {module}, which cannot be imported ({error}): start in its folder."
            ) from None
        except SystemExit as end:
            raise Error(
                f"the model's class is in {module}, which ended the program when it was imported ({end}): "
                'put what it starts under `if __name__ == "__main__":`.'
            ) from None
        finally:
            _importing.pop()
    for name in flags.FLAGS:
        if flags.FLAGS[name] is not own.get(name):
            flags.FLAGS[name].imported = flags.FLAGS[name].allow_override = True
    for name, flag in own.items():
        flags.FLAGS[name] = flag
    for name, flag in own.items():
        flag.allow_override = overridable[name]
    return {name: value for name, value in classes.items() if value}
