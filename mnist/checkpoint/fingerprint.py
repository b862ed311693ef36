"""A fingerprint of a run: plain JSON that names the difference when a resume would not be exact.

The digest of the traced graph, `traced.digest_of`, proves that two steps compute the same. A fingerprint also holds
what no graph shows: flags, data, environment, the order of an epoch, and Python attributes of the step.
"""

import re

from mnist.checkpoint.comparable import attributes_of, differences_in, is_described, is_object, plain, show
from mnist.checkpoint.reads import read_by
from mnist.cli import flagfile
from mnist.machine import kernel_variables, num_threads
from mnist.settings import settings_of, values_of

import keras
import tensorflow as tf

_VERSION = 3


def _environment():
    """Returns versions, environment variables and process-wide options that change the bits."""
    found = kernel_variables()
    if found.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("1", "true"):  # as by default
        del found["TF_ENABLE_ONEDNN_OPTS"]
    options = tf.config.optimizer.get_experimental_options()
    options.pop("scoped_allocator_optimization", None)  # set where several processes share a run, with the same bits
    return found | {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "epsilon": keras.config.epsilon(),
        "xla": tf.config.optimizer.get_jit(),
        "eager": tf.config.functions_run_eagerly(),
        "graph_optimizer": options,
    }


def _fixed_settings(owner):
    settings = settings_of(type(owner))
    return {name: value for name, value in values_of(owner).items() if not settings[name].may_change}


def names_of_attributes(step):
    """Returns the names of the public attributes of a step without its settings."""
    settings = settings_of(type(step))
    return [name for name in attributes_of(step) if name not in settings and name[0] != "_"]


def attributes(step):
    """Returns the settings of a step and its public attributes with comparable values, a dict of plain JSON.

    Keras objects are left out, because training may change what they describe.
    """
    found = {name: getattr(step, name) for name in names_of_attributes(step)}
    found = {name: value for name, value in found.items() if not is_described(value)}
    found = {name: plain(value, f"self.{name}", within=[step]) for name, value in found.items()}
    return plain(_fixed_settings(step)) | {name: value for name, value in found.items() if not is_object(value)}


def _reads(step):
    """Returns what the methods read that no graph shows: code, values of modules, attributes that begin with `_`."""
    found = read_by(step, ["epoch_order", "extra_metrics", "after_evaluation"])
    names = [name for name in found if not re.match(r"self\.[^_]", name) and not name.endswith(".epoch_order")]
    return {name: plain(found[name], name, within=[step]) for name in names}


def fingerprint_of(step, dataset, plan, settings=None):
    """Returns all that the numbers of a run depend on, as plain JSON.

    Args:
      step: the `TrainStep` of the run.
      dataset: the `data.Dataset` of the run.
      plan: the `Plan` of the run.
      settings: a dict of further settings. A command passes one, `flags`, with the dict of `flagfile.compared_flags()`.

    Raises: `mnist.Error` for an optimizer that Keras cannot serialize.
    """
    counts = [len(part.labels) for part in (dataset.train, dataset.validation, dataset.test)]
    data = {"name": dataset.name, "data_dir": dataset.data_dir, "images": counts, "sha256": dataset.arrays_digest()}
    data["classes"] = dataset.classes
    *orders, base = [vars(cls)["epoch_order"] for cls in type(step).__mro__[:-1] if "epoch_order" in vars(cls)]
    fingerprint = {
        "version": _VERSION,
        "dataset": data,
        **(settings or {}),
        **_fixed_settings(plan),
        "intra_op_threads": num_threads(),
        "precision": step.model.dtype_policy.name,
        "step": type(step).__name__,
        "environment": _environment(),
        # The code of the base class would change with its docstring.
        "epoch_order": [*orders, {"class": base.__qualname__}],
        "reads": _reads(step),
        **attributes(step),
        **{name: value for name, value in vars(step).items() if is_described(value)},
    }
    return plain(fingerprint)


def differences(old, new):
    """Returns what differs between two fingerprints, a list of texts `(name, old, new)`.

    If flags differ, only these are returned, as typed: all other differences follow from them.
    """
    old = {"portable": False} | old  # older runs do not have it
    if not isinstance(old["dataset"], dict):
        return [("the version", "an older one", str(new["version"]))]
    if old.get("version") != new["version"]:
        old, new = _common(old, new), _common(new, old)
    if "flags" in old and "flags" in new and (different := flagfile.differences(old["flags"], new["flags"])):
        return different
    different = []
    if old["dataset"]["sha256"] != new["dataset"]["sha256"]:  # the same data may be in another folder
        was, now = _name_data(old["dataset"]), _name_data(new["dataset"])
        different.append(("the data", was, now + " of other content" * (was == now)))
    classes = new["dataset"].get("classes", [])
    for label, names in enumerate(zip(old["dataset"].get("classes", classes), classes, strict=False)):
        if names[0] != names[1]:
            different.append((f"the name of class {label}", *names))
    names = [name for name in {**new, **old} if name not in ("version", "flags", "dataset")]
    found = [d for name in names for d in differences_in(old.get(name), new.get(name), "" if name == "reads" else name)]
    return different + [(name, show(was), show(now)) for name, was, now in found]


def _common(one, other):
    """Returns the part of a fingerprint that another version of this code has recorded, too."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _common(value, other[key]) for key, value in one.items() if key in other}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [_common(*pair) for pair in zip(one, other, strict=True)]
    return one


def _name_data(data):
    train, validation, test = data["images"]
    place = f" in {data['data_dir']}" if data["data_dir"] else ""
    return f"{data['name']}{place} ({train:,} training, {validation:,} validation and {test:,} test images)"
