"""Restores a step from the newest checkpoint of a run, or refuses if a resume would not be exact."""

import re

from mnist import Error
from mnist.checkpoint import bundle
from mnist.checkpoint.fingerprint import differences
from mnist.model import is_like
from mnist.settings import settings_of

import numpy as np
import tensorflow as tf


def restore(step, plan, fingerprint, directory, workdir, cluster):
    """Restores a step on all workers: the chief reads the checkpoint and sends its content to the others.

    Args:
      step: a `TrainStep`, which receives the values of the newest sound checkpoint, if there is one.
      plan: the `Plan` of the run.
      fingerprint: dict of everything that the numbers of the run depend on now.
      directory: folder of the checkpoints.
      workdir: folder of the run, for messages.
      cluster: the `Cluster` of the processes that share the run.

    Returns: the metadata of the checkpoint, a dict, or None for a new run; and the order of the current epoch, int32
      `[N]`, or None if the checkpoint holds none.
    Raises: `mnist.Error` if the checkpoint belongs to a run with other numbers, no checkpoint can be read, the plan
      asks for a new run, or a worker has other settings than the chief.
    """
    if cluster.workers == 1:
        return _restore(step, plan, fingerprint, directory, workdir)
    restored = _restore(step, plan, fingerprint, directory, workdir) if cluster.is_chief else (None, None)
    # A resume may change the length of a run and when it saves, but the workers must agree on it to meet each other.
    settings = fingerprint | {name: getattr(plan, name) for name in settings_of(type(plan))}
    for worker, other in enumerate(fingerprints := cluster.agree(settings, cluster.timeout)):
        if different := differences(fingerprints[0], other):
            named = "; ".join(_compare_with_chief(text, worker) for text in different[:3])
            raise Error(f"worker {worker} was started with other settings than the chief: {named}.")
    variables = bundle.variables_of(step).values()
    values = b"".join(variable.numpy().tobytes() for variable in variables) if cluster.is_chief else b""
    values = cluster.exchange(values)[0]
    for variable in variables:
        count = variable.shape.num_elements() * variable.dtype.size
        variable.assign(np.frombuffer(values[:count], variable.dtype.as_numpy_dtype).reshape(variable.shape))
        values = values[count:]
    metadata, order = restored
    metadata, order = cluster.agree([metadata, None if order is None else order.numpy().tolist()])[0]
    return metadata, None if order is None else tf.constant(order, tf.int32)


def _restore(step, plan, fingerprint, directory, workdir):
    loaded = bundle.load_newest(directory)
    if not loaded:
        if done := int(step.iterations):
            raise Error(f"the step has trained already (updates: {done}): a new run needs a new one.")
        return None, None
    if not plan.resume:
        raise Error(f"{workdir} holds a run already: leave out --noresume, or name another --workdir.")
    tensors, metadata = loaded
    different = differences(metadata["fingerprint"], fingerprint)
    if different:
        raise Error(
            f"{workdir} holds a run with other settings: {'; '.join(different[:3])}. "
            "Give the same to resume it, or another --workdir."
        )
    bundle.assign(step, tensors)
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


def _compare_with_chief(difference, worker):
    """Rewords a difference between two times as one between two processes."""
    return re.sub(r"(?s) was (.*), is (.*)", rf" is \1 on the chief, \2 on worker {worker}", difference)


def check_traced(before, digest, workdir, cluster):
    """Refuses a step that does not compute what it computed before, or what it computes on the chief.

    Args:
      before: digest of the step when the run was last traced. None: it was never traced.
      digest: digest of the step now, see `traced.digest_of`.
      workdir: folder of the run, for messages.
      cluster: the `Cluster` of the processes that share the run.

    Raises: `mnist.Error`.
    """
    cluster.check_same(digest, "computes another step than the chief: give all the same code", cluster.timeout)
    if before not in (None, digest):
        raise Error(
            f"{workdir} holds a run whose step computed something else: its code, or what it reads, has changed. "
            "Resume it with the same, or take another --workdir."
        )
