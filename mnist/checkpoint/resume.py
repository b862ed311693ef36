"""Where a run goes on: its state from the newest checkpoint, or why a resume would not be exact."""

import re

from mnist import Error
from mnist.checkpoint import bundle as checkpoint
from mnist.checkpoint.fingerprint import differences
from mnist.model import is_like
from mnist.settings import settings_of

import numpy as np
import tensorflow as tf


def start(step, cluster, plan, fingerprint, directory, workdir):
    """What `restore` does, of a run that many processes share: the chief reads, and tells the others all it has.

    Raises: `mnist.Error` as `restore`, or if a process was started otherwise than the chief.
    """
    if cluster.workers == 1:
        return restore(step, plan, fingerprint, directory, workdir)
    state, order = restore(step, plan, fingerprint, directory, workdir) if cluster.is_chief else ({}, None)
    # How long the run is and when it is saved may change in a resume, and says when all speak to each other.
    started = fingerprint | {name: getattr(plan, name) for name in settings_of(type(plan))}
    for worker, other in enumerate(fingerprints := cluster.agree(started, cluster.timeout)):
        if different := differences(fingerprints[0], other):
            named = "; ".join(_of_worker(text, worker) for text in different[:3])
            raise Error(f"worker {worker} was started with other settings than the chief: {named}.")
    variables = checkpoint.variables_of(step).values()
    values = b"".join(variable.numpy().tobytes() for variable in variables) if cluster.is_chief else b""
    values = cluster.exchange(values)[0]
    for variable in variables:
        count = variable.shape.num_elements() * variable.dtype.size
        variable.assign(np.frombuffer(values[:count], variable.dtype.as_numpy_dtype).reshape(variable.shape))
        values = values[count:]
    state, order = cluster.agree([state, None if order is None else order.numpy().tolist()])[0]
    return state, None if order is None else tf.constant(order, tf.int32)


def restore(step, plan, fingerprint, directory, workdir):
    """Gives a step the values of the newest sound checkpoint, if there is any.

    Args:
      fingerprint: what the numbers of the run depend on now.
      directory: where the checkpoints are.
      workdir: the run's folder, for messages.

    Returns: the run's state, a dict, and the order of the epoch under way, None if it is the default's.
    Raises: `mnist.Error` if the checkpoint is of a run with other numbers, none can be read, or a new run was asked
      for.
    """
    loaded = checkpoint.load_newest(directory)
    if not loaded:
        if done := int(step.iterations):
            raise Error(f"the step has trained already (updates: {done}): a new run needs a new one.")
        return {"step": 0, "totals": {}, "count": 0, "history": [], "times": [], "seconds": 0.0, "images": 0}, None
    if not plan.resume:
        raise Error(f"{workdir} holds a run already: leave out --noresume, or name another --workdir.")
    tensors, state = loaded
    different = differences(state["fingerprint"], fingerprint)
    if different:
        raise Error(
            f"{workdir} holds a run with other settings: {'; '.join(different[:3])}. "
            "Give the same to resume it, or another --workdir."
        )
    checkpoint.assign(step, tensors)
    if state["step"] > plan.last_step:
        raise Error(
            f"{workdir} is at step {state['step']}, beyond the last step {plan.last_step}: "
            "raise --epochs or --max_steps."
        )
    step.update_eval_model()
    if "run/answers" in tensors and not is_like(step.eval_model, tensors["run/answers"]):
        raise Error(
            f"{workdir} holds a run whose model answered otherwise where it is evaluated: its code has changed. "
            "Resume it with the same, or take another --workdir."
        )
    checkpoint.set_aside_newer(directory, state["step"])
    return state, tf.constant(tensors["run/order"]) if "run/order" in tensors else None


def _of_worker(difference, worker):
    """What differs between two fingerprints, of two processes in place of two times."""
    return re.sub(r"(?s) was (.*), is (.*)", rf" is \1 on the chief, \2 on worker {worker}", difference)


def check_traced(state, digest, workdir, cluster):
    """Raises `mnist.Error` if the step computes something else than it did, or than on the chief.

    Args:
      digest: of `traced.digest_of`.
    """
    cluster.check_same(digest, "computes another step than the chief: give all the same code", cluster.timeout)
    if state.setdefault("traced", digest) != digest:
        raise Error(
            f"{workdir} holds a run whose step computed something else: its code, or what it reads, has changed. "
            "Resume it with the same, or take another --workdir."
        )
