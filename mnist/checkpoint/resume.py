"""Restores a step from the newest checkpoint of a run, or refuses if a resume would not be exact.

The other refusals are in `cli/flagfile.py` (flags), `fingerprint.py` (names what differs) and `traced.py` (the graph).
"""

from mnist import Error
from mnist.checkpoint import bundle, state
from mnist.checkpoint.fingerprint import differences, names_of_attributes
from mnist.checkpoint.variables import variables_of
from mnist.model import is_like
from mnist.settings import values_of

import keras
import numpy as np
import tensorflow as tf


def restore(step, plan, fingerprint, directory, workdir, cluster):
    """Assigns to a step the values of the newest sound checkpoint. The chief reads it and sends it to all workers.

    Args:
      step: a `TrainStep`.
      plan: the run's `Plan`.
      fingerprint: a dict. Everything that the numbers depend on now, see `fingerprint_of`.
      directory: the folder of the checkpoints.
      workdir: the run's folder, for messages.
      cluster: the `Cluster` of the processes that share the run.

    The step that has trained this run itself may have another learning rate, which it keeps.

    Returns: the metadata, a dict, and the order of the current epoch, int32 `[N]`. Each is None if it was not saved.
      The `fingerprint` in the metadata is the one to save from now on.
    Raises: `mnist.Error` if a resume would not be exact, or if a worker has other settings than the chief.
    """
    if cluster.workers == 1:
        return _take_state(step, *_restore(step, plan, fingerprint, directory, workdir))
    restored = _restore(step, plan, fingerprint, directory, workdir) if cluster.is_chief else (None, None)
    # A resume may change most settings of the plan, but workers with different ones would wait for each other for ever.
    # Values that hooks read may name the worker. All compare orders and weights anyway.
    settings = {name: value for name, value in fingerprint.items() if name != "reads"} | values_of(plan)
    for worker, other in enumerate(fingerprints := cluster.agree(settings, cluster.timeout)):
        if different := differences(fingerprints[0], other):
            named = "; ".join(
                f"{name} is {one} on the chief, {other} on worker {worker}" for name, one, other in different[:3]
            )
            raise Error(f"worker {worker} was started with other settings than the chief: {named}.")
    variables = variables_of(step).values()
    values = b"".join(variable.numpy().tobytes() for variable in variables) if cluster.is_chief else b""
    values = cluster.exchange(values)[0]
    for variable in variables:
        count = variable.shape.num_elements() * variable.dtype.size
        variable.assign(np.frombuffer(values[:count], variable.dtype.as_numpy_dtype).reshape(variable.shape))
        values = values[count:]
    metadata, order = restored
    metadata, order = cluster.agree([metadata, None if order is None else order.numpy().tolist()])[0]
    return _take_state(step, metadata, None if order is None else tf.constant(order, tf.int32))


def _take_state(step, metadata, order):
    if metadata and "state" in metadata:  # an older version did not save it
        first = dict(step.state) if "other_hooks" in metadata else {}  # with what other hooks need
        state.restore(step.state, metadata["state"])
        step.state.update({name: value for name, value in first.items() if name not in step.state})
    return metadata, order


def _restore(step, plan, fingerprint, directory, workdir):
    loaded = bundle.load_newest(directory)
    if not loaded:
        if done := int(step.iterations):
            raise Error(f"the step has trained already (updates: {done}): a new run needs a new one.")
        return None, None
    if not plan.resume:
        raise Error(f"{workdir} holds a run already: leave out --noresume, or name another --workdir.")
    tensors, metadata = loaded
    for name in ("epoch_order", "reads"):
        if metadata["fingerprint"].get(name) is None:  # a hook raised, so that its user had to change it
            metadata["fingerprint"][name] = fingerprint[name]
    if "other_hooks" in metadata:
        for name in {*metadata["other_hooks"]} ^ {*names_of_attributes(step)}:  # the graph shows what it needs of them
            metadata["fingerprint"].pop(name, None)
            metadata["fingerprint"] |= {name: fingerprint[name]} if name in fingerprint else {}
    done = int(step.iterations)  # of a live step, whose rate its user or a hook may have changed
    rate = _rate_of(step) if done == metadata["step"] else None
    compared = _with_rates(metadata["fingerprint"], fingerprint) if done else metadata["fingerprint"]
    if different := differences(compared, fingerprint):
        named = "; ".join(f"{name} was {was}, is {now}" for name, was, now in different[:3])
        raise Error(
            f"{workdir} holds a run with other settings: {named}. Give the same to resume it, or another --workdir."
        )
    bundle.assign(step, tensors)
    if metadata["fingerprint"].get("version") != fingerprint["version"]:
        metadata["traced"] = None  # an older version traced the same step to another graph
    if rate is None or _rate_of(step) != rate:
        metadata["fingerprint"] = fingerprint
    if rate is not None:
        step.optimizer.learning_rate = rate  # that the user has set since
    if metadata["step"] > plan.last_step:
        raise Error(
            f"{workdir} is at step {metadata['step']}, beyond the last step {plan.last_step}: "
            "raise --epochs or --max_steps."
        )
    step.update_eval_model()
    if "run/answers" in tensors and not is_like(step.eval_model, tensors["run/answers"]):
        raise Error(
            f"{workdir} holds a run whose model answered otherwise where it is evaluated: its code has changed. "
            "Resume it with the same, or take another --workdir."
        )
    bundle.set_aside_newer(directory, metadata["step"])
    return metadata, tf.constant(tensors["run/order"]) if "run/order" in tensors else None


def _rate_of(step):
    """Returns the learning rate of a step that its user may set, a float. None: the rate is a schedule."""
    rate = step.optimizer.learning_rate
    return float(rate) if isinstance(rate, keras.Variable) else None


def _with_rates(old, new):
    """Returns a fingerprint with the learning rates of another."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {k: new[k] if k == "learning_rate" and k in new else _with_rates(v, new.get(k)) for k, v in old.items()}
    return old
