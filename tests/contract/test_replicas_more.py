"""Slices of a batch, the environment that names the processes of a run, and workers that disagree."""

import json
import re
import socket

from mnist import Error
from mnist.checkpoint import fingerprint_of, resume
from mnist.data import inspect
from mnist.distributed import Cluster, Replicas, check_slices, ranks, read_cluster
from mnist.run import Checkpointer, Plan, SilentRecorder, Trainer
from mnist.step import Context, TrainStep, compile_step

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_linear


class TwoWorkers:
    """A cluster whose other worker sends the same as this one."""

    workers, worker = 2, 0

    def gather(self, vector):
        return tf.stack([vector, vector])


class Disagreeing(Cluster):
    """A cluster of two whose other worker sends `others`, a function of the value of this one."""

    def __init__(self, others):
        super().__init__()
        self.workers, self.others = 2, others

    def agree(self, value, timeout=None):
        return [value, self.others(value)]

    def exchange(self, data, timeout=None):
        return [data, data]


def test_workers_of_other_lengths_are_refused(digits, tmp_path):
    step = TrainStep(make_linear(), keras.optimizers.Adam())
    cluster = Disagreeing(lambda value: value | {"epochs": 7})
    plan = Plan(len(digits.train.labels))
    with pytest.raises(Error, match=r"other settings than the chief: epochs is .* on the chief, 7 on worker 1\."):
        resume.restore(step, plan, fingerprint_of(step, digits, plan), str(tmp_path), "run", cluster)


def test_an_epoch_in_another_order_on_one_worker_is_refused(digits, tmp_path):
    step = TrainStep(make_linear(), keras.optimizers.Adam())
    replicas = Replicas(cluster=Disagreeing(lambda value: value + 1 if isinstance(value, int) else value))
    plan = Plan(len(digits.train.labels))
    checkpointer = Checkpointer(step, digits, str(tmp_path), plan, replicas.cluster)
    trainer = Trainer(step, digits, plan, Context(replicas), checkpointer, SilentRecorder(), inspect(digits))
    with pytest.raises(Error, match="worker 1 has another order of"):
        trainer.train_steps()


CLUSTER = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not JSON"),
        ({"cluster": {"ps": ["a:1"]}}, "has a job 'ps'"),
        ({"cluster": {"worker": ["a", "b:2"]}}, "for the addresses of worker"),
        ({"cluster": {"worker": ["a:1", "a:1"]}}, "has a:1 twice"),
        ({"cluster": {"chief": ["c:1", "d:1"], **CLUSTER}}, "has more than one chief"),
        ({"cluster": CLUSTER, "task": {"type": ["worker"], "index": 0}}, "of no job of the cluster"),
        ({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}, "has the index 2 for 2 of worker"),
    ],
)
def test_a_wrong_tf_config_is_refused(config, message, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(Error, match=f"^TF_CONFIG .*{re.escape(message)}.*: expected "):
        read_cluster()


def test_a_process_without_others_is_alone(monkeypatch):
    assert read_cluster() == ()
    for alone in ("{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'):
        monkeypatch.setenv("TF_CONFIG", alone)
        assert read_cluster() == ()


def test_kubernetes_and_slurm_name_the_processes(monkeypatch):
    jobs = {"worker": ["a:1", "b:2"], "chief": ["c:3"]}
    config = {"cluster": jobs, "task": {"type": "worker", "index": "1"}, "environment": "cloud"}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert read_cluster() == (jobs, "worker", 1)
    monkeypatch.delenv("TF_CONFIG")
    slurm = {"PROCID": "2", "STEP_NUM_TASKS": "3", "STEP_NODELIST": "n[1-2]", "STEP_TASKS_PER_NODE": "2,1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert read_cluster() == ({"worker": ["n1:8888", "n1:8889", "n2:8888"]}, "worker", 2)
    monkeypatch.setenv("SLURM_PROCID", "5")
    with pytest.raises(Error, match="the variables of Slurm describe no cluster: no task 5"):
        read_cluster()


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Error, match=f"port {port} of localhost:{port} is taken"):
            Cluster({"worker": [f"localhost:{port}", "localhost:1"]}, "worker", 0)


def test_slices_are_shared_evenly_or_refused():
    for workers, devices, slices in ((1, 1, 1), (2, 1, 2), (2, 2, 8)):
        check_slices(slices, workers, devices)
    with pytest.raises(Error, match=r"--slices=2 cannot be shared by 4 replicas, .*: --slices=4 or 8 would do"):
        check_slices(2, 2, 2)
    with pytest.raises(Error, match="by 3 replicas, 1 in each of 3 processes: 1, 2, 4, 8 and so on of them could"):
        check_slices(4, 3, 1)
    with pytest.raises(Error, match="--slices=3 is not a power of two"):
        TrainStep(make_linear(), keras.optimizers.Adam(), slices=3)


def test_gathered_rows_are_in_the_order_of_the_workers():
    assert ranks([("chief", 0), ("worker", 0), ("worker", 1)]) == [0, 1, 2]
    assert ranks([("worker", i) for i in range(12)]) == [0, 1, *range(4, 12), 2, 3]


class Keeping(TrainStep):
    def compute_loss(self, images, labels):
        loss, self.kept = super().compute_loss(images, labels)
        return loss, self.kept

    def compute_gradients(self, images, labels):
        gradients, scalars = super().compute_gradients(images, labels)
        return gradients, scalars | {"largest": tf.reduce_max(self.kept)}


class Constant(TrainStep):
    """A step with a tensor among its labels that has no row for each image."""

    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        return images, (labels, tf.range(10.0))

    def compute_loss(self, images, labels):
        return super().compute_loss(images, labels[0] * labels[1])


def test_tensors_of_one_slice_or_without_a_batch_are_refused():
    specs = [tf.TensorSpec([None, 28, 28, 1], tf.uint8), tf.TensorSpec([None], tf.uint8)]

    def trace(cls, slices):
        compile_step(cls(make_linear(), keras.optimizers.Adam(), slices=slices)).get_concrete_function(*specs)

    trace(Keeping, 1)
    with pytest.raises(AttributeError, match="no attribute 'kept'"):
        trace(Keeping, 2)

    with pytest.raises(Error, match=r"prepare_batch gave a tensor \(10,\) beside"):
        trace(Constant, 2)


class OpenSize(TrainStep):
    """A step that leaves the size of its images open, as an augmentation may."""

    def prepare_batch(self, images, labels):
        images, labels = super().prepare_batch(images, labels)
        return tf.image.resize(images, tf.shape(images)[1:3]), labels


@pytest.mark.parametrize("first", [keras.layers.Conv2D(2, 5, strides=3), keras.layers.Embedding(2, 1)])
def test_gradients_without_a_static_shape_are_shared(first, digits):
    """The gradient of an embedding table has only some rows."""
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
