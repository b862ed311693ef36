"""Slices of a batch: variables of all types that a layer or a step writes, and workers that disagree."""

import json

from mnist import Error
from mnist.checkpoint import fingerprint_of, resume
from mnist.distributed import Cluster, Replicas, ranks, read_cluster
from mnist.model import CNN
from mnist.run import Checkpointer, Plan, SilentRecorder, Trainer
from mnist.step import Context, TrainStep, compile_step

import keras
import numpy as np
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


class Disagreeing(Cluster):
    """A cluster of two whose other worker tells `others`, a function of what this one tells."""

    def __init__(self, others):
        super().__init__()
        self.workers, self.others = 2, others

    def agree(self, value, timeout=None):
        return [value, self.others(value)]

    def exchange(self, data, timeout=None):
        return [data, data]


@pytest.mark.parametrize("name", ["epochs", "max_steps", "steps_per_loop", "checkpoint_every", "profile"])
def test_workers_of_other_lengths_or_intervals_are_refused(name, digits, tmp_path):
    step = TrainStep(CNN(), keras.optimizers.Adam())
    cluster = Disagreeing(lambda told: told | {name: 7})
    plan = Plan(len(digits.train.labels))
    with pytest.raises(Error, match=rf"other settings than the chief: {name} is .* on the chief, 7 on worker 1\."):
        resume.restore(step, plan, fingerprint_of(step, digits, plan), str(tmp_path), "run", cluster)


def test_an_epoch_in_another_order_on_one_worker_is_refused(digits, tmp_path):
    step = TrainStep(CNN(), keras.optimizers.Adam())
    replicas = Replicas(cluster=Disagreeing(lambda told: told + 1 if isinstance(told, int) else told))
    plan = Plan(len(digits.train.labels))
    checkpointer = Checkpointer(step, digits, str(tmp_path), plan, replicas.cluster)
    trainer = Trainer(step, digits, plan, Context(replicas), checkpointer, SilentRecorder())
    with pytest.raises(Error, match="worker 1 has another order of"):
        trainer.train_steps(1)


@pytest.mark.parametrize("kind", [["worker"], {}, None, 0])
def test_a_task_of_no_job_is_refused(kind, monkeypatch):
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": kind, "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(Error, match="of no job of the cluster"):
        read_cluster()


def test_a_process_that_slurm_does_not_list_is_refused(monkeypatch):
    variables = {"STEP_NUM_TASKS": "2", "PROCID": "5", "STEP_NODELIST": "localhost", "STEP_TASKS_PER_NODE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(Error, match="the variables of Slurm tell of no cluster: no task 5"):
        read_cluster()


def test_workers_are_in_the_order_of_their_numbers():
    assert ranks([("chief", 0), ("worker", 0), ("worker", 1)]) == [0, 1, 2]
    assert ranks([("worker", i) for i in range(12)]) == [0, 1, *range(4, 12), 2, 3]


class Keeping(TrainStep):
    """Keeps a tensor of `compute_loss` for later."""

    def compute_loss(self, images, labels):
        loss, self.kept = super().compute_loss(images, labels)
        return loss, self.kept

    def compute_gradients(self, images, labels):
        gradients, scalars = super().compute_gradients(images, labels)
        return gradients, scalars | {"largest": tf.reduce_max(self.kept)}


class Constant(TrainStep):
    """Has something else than a batch among its labels."""

    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        return images, (labels, tf.range(10.0))

    def compute_loss(self, images, labels):
        return super().compute_loss(images, labels[0] * labels[1])


def test_what_is_of_one_slice_or_of_no_batch_is_not_taken_for_the_batchs():
    specs = [tf.TensorSpec([None, 28, 28, 1], tf.uint8), tf.TensorSpec([None], tf.uint8)]

    def trace(cls, slices):
        tf.function(cls(CNN(), keras.optimizers.Adam(), slices=slices), input_signature=specs).get_concrete_function()

    trace(Keeping, 1)
    with pytest.raises(AttributeError, match="no attribute 'kept'"):
        trace(Keeping, 2)
    with pytest.raises(Error, match=r"prepare_batch gave a tensor \(10,\) beside"):
        trace(Constant, 2)


class OpenSize(TrainStep):
    """Leaves the size of its images open, as an augmentation may."""

    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        return tf.image.resize(images, tf.shape(images)[1:3]), labels


@pytest.mark.parametrize("first", [keras.layers.Conv2D(2, 5, strides=3), keras.layers.Embedding(2, 1)])
def test_gradients_of_a_shape_that_the_graph_does_not_know_are_shared(first, digits):
    """As of an augmentation that leaves the size of its images open; and of a table, which has only some rows."""
    layers = [keras.Input([28, 28, 1]), first, keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    images, labels = (np.concatenate([part[:8], part[:8]]) for part in digits.train)
    found = []
    for cluster in (None, TwoWorkers()):
        step = OpenSize(model, keras.optimizers.SGD(0.0), slices=2)
        _, gradients = compile_step(step, Context(Replicas(cluster=cluster)))(images, labels)
        found.append([tf.convert_to_tensor(gradient).numpy().tobytes() for gradient in gradients])
    assert found[0] == found[1]
    assert len(found[0]) == len(model.trainable_variables)
