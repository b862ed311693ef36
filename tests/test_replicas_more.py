"""Slices of a batch: variables of all types that a layer or a step writes."""

from mnist.replicas import Replicas

import pytest
import tensorflow as tf


class TwoWorkers:
    """A cluster whose other worker tells what this one tells."""

    workers, worker = 2, 0

    def gather(self, vector):
        return tf.stack([vector, vector])


@pytest.mark.parametrize("cluster", [None, TwoWorkers()], ids=["alone", "shared"])
@pytest.mark.parametrize(
    ("dtype", "before", "after"),
    [("bool", False, True), ("uint8", 3, 255), ("int32", 1, -(2**31)), ("int64", -1, 2**62), ("uint64", 1, 2**63 + 1)],
)
def test_what_is_no_float_has_what_slice_0_writes(cluster, dtype, before, after):
    replicas, variable = Replicas(cluster=cluster), tf.Variable(before, dtype=dtype)

    def compute(x, number):
        variable.assign(tf.constant(after if number == 0 else before, dtype))
        return tf.reduce_mean(x)

    mean = tf.function(lambda x: replicas.mean(compute, 2, (x,), [variable]))
    assert float(mean(tf.constant([2.0, 2.0, 4.0, 4.0]))) == (3 if cluster is None else 2)
    assert variable.numpy() == after
