"""The weights and the state that one run passes on to another."""

from mnist import Error, checkpoint, data
from mnist.finished.saved_run import load, read
from mnist.settings import local_path

import keras
from absl import logging


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
    counts = len(run.classes), len(dataset.classes)
    if shapes != shapes_there and counts[0] != counts[1]:
        found = f"was trained with {counts[0]} classes, but {dataset.name} has {counts[1]}"
        raise Error(f"--init_from={workdir} {found}: its weights do not fit. Take data with as many classes.")
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
    tensors, metadata = read(local_path(workdir), "newest")
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
