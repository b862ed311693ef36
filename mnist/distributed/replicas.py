"""The slices of a batch: which device computes which slice, and how the results are summed.

A batch is cut into a fixed number of slices. Each slice is computed alone, with the same bits on any device. All are
summed in a fixed tree, so that the sum does not depend on the devices. After EasyScale (arXiv:2208.14228) and
VirtualFlow (arXiv:2009.09523).
"""

import itertools

from mnist import Error
from mnist.checkpoint import written_variables
from mnist.distributed.additions import added_variables
from mnist.distributed.addresses import read_cluster
from mnist.distributed.cluster import Cluster

import numpy as np
import tensorflow as tf

_Aggregation = tf.VariableAggregation
# The position of the seed in the state of a random generator of Keras and of TensorFlow.
_SEEDS = {"seed_generator_state": 0, "StateVar": -1}


def _bounds(batch_size, slices):
    """Returns begin, end and size of each slice, scalar int32 tensors.

    With fewer images than slices some sizes are 0. Such a slice still has one image, with weight 0, because pooling in
    TensorFlow fails on an empty batch.
    """
    ends = [batch_size * i // slices for i in range(slices + 1)]
    return [(a, tf.maximum(b, a + 1), b - a) for a, b in itertools.pairwise(ends)]


def start(devices=1, slices=1, timeout=60):
    """Connects the processes that the environment describes, of `devices` each, which must start in `timeout` seconds.

    `slices` may be None in a process that gets it from the chief, which checks it.

    Returns: a `Replicas`.
    Raises: `mnist.Error` as `check_slices`, `read_cluster` and `Cluster`, and if TensorFlow has computed already.
    """
    described = read_cluster()
    workers = sum(map(len, described[0].values())) if described else 1
    if slices is not None:
        check_slices(slices, workers, devices)
    if devices > 1 and not tf.config.list_physical_devices("GPU"):
        cores = [tf.config.LogicalDeviceConfiguration()] * devices
        try:
            tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cores)
        except RuntimeError:
            raise Error(f"--devices={devices} must be set before TensorFlow computes anything.") from None
    return Replicas(devices, Cluster(*described, timeout=timeout))


def check_slices(slices, workers, devices):
    """Raises `mnist.Error` if the workers, of `devices` each, cannot share the slices of a batch evenly."""
    total = workers * devices
    if slices % total:
        least = 1 << (total - 1).bit_length()
        would = f"--slices={least} or {2 * least} would do" if least == total else "1, 2, 4, 8 and so on of them could"
        found = f"{total} replicas, {devices} in each of {workers} processes"
        raise Error(f"--slices={slices} cannot be shared by {found}: {would}.")


class Replicas:
    """The devices that share a run.

    Args:
      devices: an int. The number of devices of each process: GPUs if it has any, or else logical CPUs.
      cluster: a `Cluster`. The processes. Default: this process alone.

    Raises: `mnist.Error` if this process has fewer devices.
    """

    def __init__(self, devices=1, cluster=None):
        self.cluster = cluster or Cluster()
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        names = [device.name for device in tf.config.list_logical_devices(kind)]
        if len(names) < devices:
            raise Error(f"--devices={devices}: this process has {len(names)} {kind}.")
        self._devices = names[:devices] if devices > 1 else [None]  # None: TensorFlow chooses

    def check(self, slices):
        """Raises `mnist.Error` if these devices cannot share the slices of a batch evenly."""
        check_slices(slices, self.cluster.workers, len(self._devices))

    def describe(self, slices):
        """Returns which slices this process computes, as "slices 0-1 of 4 on worker 0 of 2"."""
        own, cluster, devices = self._own(slices), self.cluster, len(self._devices)
        names = f"slice {own[0]}" if len(own) == 1 else f"slices {own[0]}-{own[-1]}"
        place = f" on worker {cluster.worker} of {cluster.workers}" if cluster.workers > 1 else ""
        return f"{names} of {slices}{place}" + (f" on {devices} devices" if devices > 1 else "")

    def _own(self, slices):
        count = slices // self.cluster.workers
        return range(self.cluster.worker * count, (self.cluster.worker + 1) * count)

    def mean(self, compute, slices, batch, variables, jit_compile=False):
        """Computes the mean over a batch, slice by slice.

        Each slice starts with the variables as they were before the step, but with random generators of its own. The
        `aggregation` of a variable decides how the changes of the slices are combined. They are summed or averaged, or
        slice 0 decides. Default: floating-point values are averaged, and slice 0 decides others, such as a count.

        Args:
          compute: a function of the tensors of a slice and its number. It returns a structure of tensors and Nones,
            each tensor a mean over the slice.
          slices: an int. With 1, `compute` gets the whole batch and writes to the variables directly.
          batch: a tuple of tensors `[B, ...]`, or of structures of tensors.
          variables: a list of the `tf.Variable`s that `compute` may write to.
          jit_compile: a bool. Whether XLA compiles each slice.

        Returns: the structure, with means over the batch.
        Raises: `mnist.Error` for a variable without an `aggregation` to which a slice adds something of its images.
        """
        if slices == 1:
            return compute(*batch, 0)
        # A method of its own, because autograph takes long to convert it.
        return self._mean_of_slices(compute, slices, batch, variables, jit_compile)

    def _mean_of_slices(self, compute, slices, batch, variables, jit_compile):
        for x in tf.nest.flatten(batch):
            if x.shape[:1] != tf.nest.flatten(batch)[0].shape[:1]:
                raise Error(f"prepare_batch gave a tensor {x.shape} beside others of a batch, which slices would cut.")
        graph = tf.function(lambda *batch: compute(*batch, 0)).get_concrete_function(*batch).graph
        written = written_variables(graph, variables)
        for variable in added_variables(graph, [v for v in written if v.aggregation == _Aggregation.NONE]):
            raise Error(
                f"compute_loss adds to the variable {variable.name}, but with --slices={slices} it gets one slice at a "
                "time. Make it tf.Variable(..., aggregation=tf.VariableAggregation.SUM) to add sums, MEAN to add means."
            )
        before = [variable.read_value() for variable in written]
        bases = [_base(value) for value in before]
        size, own, parts = tf.shape(tf.nest.flatten(batch)[0])[0], self._own(slices), []
        cuts = _bounds(size, slices)
        for i in own:
            begin, end, count = cuts[i]
            for variable, value in zip(written, before, strict=True):
                variable.assign(_of_slice(variable, value, i))
            with tf.device(self._devices[(i - own[0]) * len(self._devices) // len(own)]):
                part = tf.nest.map_structure(lambda x, begin=begin, end=end: x[begin:end], batch)
                structure = _compile(compute, i, jit_compile)(*part)
                tensors = [tf.convert_to_tensor(x) for x in tf.nest.flatten(structure) if x is not None]
                share = tf.cast(count, tf.float64) / tf.cast(size, tf.float64)
                part = [_weigh(x, share) for x in tensors]
                for variable, base in zip(written, bases, strict=True):
                    now = variable.read_value()
                    tensors.append(now - base if _is_move(variable) else now)  # 0 if it was not written
                    part.append(_weigh_move(tensors[-1], variable.aggregation, share, i))
                parts.append(part)
        parts, sums = self._gather(parts), [False] * (len(tensors) - len(written)) + list(map(_is_sum, written))
        means = [
            tf.cast(_mean(values, is_sum), x.dtype)
            for values, x, is_sum in zip(zip(*parts, strict=True), tensors, sums, strict=True)
        ]
        moves = means[len(means) - len(written) :]
        for variable, base, moved in zip(written, bases, moves, strict=True):
            variable.assign(base + moved if _is_move(variable) else moved)
        means = iter(means)
        return tf.nest.map_structure(lambda x: None if x is None else next(means), structure)

    def _gather(self, parts):
        """Returns the tensors of all slices, a list for each slice in order, from the tensors of this process."""
        if self.cluster.workers == 1:
            return parts
        dtype = tf.float64 if any(x.dtype in (tf.float64, tf.int64, tf.uint64) for x in parts[0]) else tf.float32
        sizes = [x.shape.num_elements() for x in parts[0]]
        vector = tf.concat([_as_bits(x, dtype) for part in parts for x in part], 0)
        vector.set_shape([len(parts) * sum(sizes)])
        rows = tf.reshape(self.cluster.gather(vector), [-1, sum(sizes)])  # [slices, numbers of one]
        return [
            [_from_bits(y, x) for y, x in zip(tf.split(row, sizes), parts[0], strict=True)] for row in tf.unstack(rows)
        ]


def _compile(compute, i, jit_compile):
    def compute_slice(*part):
        return compute(*part, i)

    return tf.function(compute_slice, jit_compile=True) if jit_compile else compute_slice


def _base(value):
    """Returns the value that changes of a variable are counted from. It is 0 where the variable is not finite."""
    return tf.where(tf.math.is_finite(value), value, tf.zeros_like(value)) if value.dtype.is_floating else value


def _of_slice(variable, value, i):
    """Returns the value of a variable when slice `i` begins. A random generator gets another seed for each slice."""
    position = next((place for name, place in _SEEDS.items() if name in variable.name), None)
    if position is None or not i:
        return value
    offset = np.zeros(variable.shape, np.int64)
    offset[position] = i * 0x1E3779B9  # far apart for all seeds
    return value + tf.constant(offset, variable.dtype)


def _weigh(x, share):
    """Multiplies the mean of a slice by its share of the batch. Returns integers unchanged.

    The product of NaN and a share of 0 is 0. Grappler does not factor this product out of a sum.
    """
    if not x.dtype.is_floating:
        return x
    x = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
    return tf.math.multiply_no_nan(x, tf.cast(share, x.dtype))


def _is_sum(variable):
    return variable.aggregation == _Aggregation.SUM and not variable.dtype.is_bool


def _is_move(variable):
    """Returns whether the changes of a variable are combined. Otherwise slice 0 decides its value."""
    return variable.dtype.is_floating or _is_sum(variable)


def _weigh_move(x, aggregation, share, i):
    """Multiplies the change of a variable in slice `i` by its weight in the sum. Integers can only count fully."""
    if aggregation == _Aggregation.SUM:
        return tf.where(share > 0, x, tf.zeros_like(x))
    if aggregation == _Aggregation.ONLY_FIRST_REPLICA and x.dtype.is_floating:
        return tf.zeros_like(x) if i else x
    return _weigh(x, share)


def _mean(values, is_sum):
    """Returns the sum of weighted values, added in pairs. Of integers it returns the first, unless they are summed."""
    if not values[0].dtype.is_floating and not is_sum:
        return values[0]
    while len(values) > 1:
        # Without the snapshots Grappler would add (a + b) + (c + d) from left to right.
        values = [tf.raw_ops.Snapshot(input=a + b) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _as_bits(x, dtype):
    """Returns a tensor as a vector of floats. Integers keep their bits, because a gather does not compute."""
    if x.dtype.is_floating:
        return tf.reshape(tf.cast(x, dtype), [-1])
    return tf.reshape(tf.bitcast(tf.cast(x, tf.int64 if dtype == tf.float64 else tf.int32), dtype), [-1])


def _from_bits(vector, like):
    vector = tf.reshape(vector, like.shape)
    if like.dtype.is_floating:
        return tf.cast(vector, like.dtype)
    return tf.cast(tf.bitcast(vector, tf.int64 if vector.dtype == tf.float64 else tf.int32), like.dtype)
