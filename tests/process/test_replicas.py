"""A run has the same bits wherever its slices are computed, and the loss of a process costs only time."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

from mnist import LOST, Error, checkpoint
from mnist.distributed import Cluster, check_slices, read_cluster
from mnist.run import OF_THE_HOUR

import layouts
import pytest
import tensorflow as tf
from conftest import SMALL, quick_python
from launch_workers import _free_ports
from test_research import NAMES

ROOT = pathlib.Path(__file__).parents[2]
# Does at the beginning of the second epoch, on one worker, what FAULT says.
SCRIPT = """
import json, os, signal, time
from absl import flags
from mnist import train  # before TensorFlow, whose C++ it quiets
from mnist.step import TrainStep
import keras
import tensorflow as tf

fault, _, worker = os.environ.get("FAULT", "").partition(":")
index = json.loads(os.environ.get("TF_CONFIG") or '{"task": {"index": 0}}')["task"]["index"]
flags.DEFINE_bool("writes", False, "Whether the step writes what it sees.")

class Step(TrainStep):
    def epoch_order(self, examples, epoch):
        if epoch == 1 and worker == str(index):
            if fault == "sleep":
                time.sleep(100)
            elif fault == "raise":
                raise RuntimeError("a fault of its own")
            elif fault == "nan":
                self.model.trainable_variables[-1].assign([float("nan")] * 10)
            elif fault == "other":
                self.model.trainable_variables[-1].assign_add([1e-6] * 10)
            else:
                time.sleep(1)  # the chief is still about to save: it may yet have to hear what this one told
                os.kill(os.getpid(), getattr(signal, fault))
        return super().epoch_order(examples, epoch)

    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        if flags.FLAGS.writes:
            with self.view.every(4):
                tf.summary.scalar("own/loss", loss)
        return loss * (2.0 if fault == "code" and worker == str(index) else 1.0), logits

"""
SCRIPT += f"""{SMALL}
if __name__ == "__main__":
    train.launch(Step, model=small)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


@pytest.fixture(scope="module")
def quiet_python():
    """One whose TensorFlow was told when it started what `mnist` tells it of several processes."""
    with quick_python(TF_CPP_MIN_LOG_LEVEL="3") as path:
        yield path


class Workers:
    """Starts a script as the processes of one run, with other flags for some."""

    def __init__(self, python, script, count=2, flags=(), others=None, skipped=(), **env):
        addresses = [f"localhost:{port}" for port in _free_ports(count)]
        self.processes = {}
        for i in set(range(count)) - set(skipped):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            workdir = f"--workdir={script.parent}/run_{i}"  # they share no folder
            command = [python, str(script), "--dataset=digits", "--slices=4", "--epochs=3", workdir, *flags]
            self.processes[i] = subprocess.Popen(
                [*command, *(others or {}).get(i, ())],
                env=os.environ | env | {"TF_CONFIG": json.dumps(config)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def wait(self, seconds=120):
        """Returns: exit codes, and what was written to stdout and stderr, by worker."""
        limit = time.monotonic() + seconds
        try:
            texts = {i: p.communicate(timeout=limit - time.monotonic()) for i, p in self.processes.items()}
        finally:
            for process in self.processes.values():
                process.kill()
        codes = {i: process.returncode for i, process in self.processes.items()}
        return codes, *({i: both[n] for i, both in texts.items()} for n in (0, 1))


def last(folder):
    """The variables, and the history, of a run's newest checkpoint."""
    tensors, metadata = checkpoint.load_newest(str(folder / "checkpoints"))
    return {name: tensor.tobytes() for name, tensor in tensors.items()}, metadata["history"]


def shown(folder):
    """What TensorBoard shows of the training beside the speed: a dict from tags to lists of steps and values."""
    values = {}
    for path in sorted((folder / "train").glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag.split("/")[0] in ("batch", "epoch", "gradients", "own", "updates", "weights"):
                    values.setdefault(value.tag, []).append((event.step, value.tensor.SerializeToString()))
    return values


def test_every_step_has_the_same_bits_on_any_layout(tmp_path):
    launcher = [sys.executable, str(ROOT / "scripts" / "launch_workers.py"), f"--logs={tmp_path}"]
    worker = [sys.executable, layouts.__file__, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / place) for place in ("tests", "tests/contract"))}
    done = subprocess.run([*launcher, "--workers=2", "--", *worker], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first.keys() == second.keys()
    assert {part for name in first for part in name.split("+")} > {"plain", *NAMES}
    for name in first:
        found = first[name] | second[name]
        assert len(found) == 3, name
        expected = found.pop("alone")
        for layout, digests in found.items():
            assert digests == expected, f"{name}, {layout}: {[k for k in expected if digests[k] != expected[k]]}"


def test_a_signal_at_one_worker_saves_on_all_and_another_layout_resumes(quiet_python, start, script):
    flags = ("--holdout=100", "--early_stopping_patience=2", "--profile=3:4", "--steps_per_loop=10")
    flags += ("--writes", "--norms_every=4", "--histograms_every=6")
    codes, texts, errors = Workers(quiet_python, script, flags=flags, FAULT="SIGTERM:1").wait()
    assert set(codes.values()) == {128 + signal.SIGTERM}, errors
    assert texts[0].startswith("slices 0-1 of 4 on worker 0 of 2\n")
    assert f"stopped at step 32, saved in {script.parent}/run_0. To resume: " in texts[0]
    assert texts[1] == "slices 2-3 of 4 on worker 1 of 2\n"
    assert not (script.parent / "run_1").exists()  # the chief alone writes
    for folder, device_flags in (("run_0", ["--devices=2"]), ("straight", [])):
        done = start(
            script,
            "--dataset=digits",
            "--slices=4",
            "--epochs=3",
            f"--workdir={script.parent / folder}",
            *flags,
            *device_flags,
        )
        assert done.returncode == 0, done.stderr
    assert "resuming from step 32" in done.stdout or (script.parent / "straight").exists()
    moved, straight = (script.parent / folder for folder in ("run_0", "straight"))
    assert last(moved) == last(straight)
    assert shown(moved) == shown(straight)
    assert [step for step, _ in shown(moved)["own/loss"]] == list(range(4, 67, 4))
    results = [json.loads((folder / "results.json").read_text()) for folder in (moved, straight)]
    numbers = [{k: v for k, v in result.items() if k not in OF_THE_HOUR} for result in results]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("fault", ["SIGKILL:1", "SIGKILL:0", "SIGSTOP:1", "sleep:0"])
def test_the_loss_of_a_worker_ends_all_in_a_line(fault, quiet_python, script):
    name, _, lost = fault.partition(":")
    lost = int(lost)
    in_use = sys.executable if fault == "SIGKILL:0" else quiet_python
    workers = Workers(in_use, script, flags=["--worker_timeout=30"], FAULT=fault)
    try:
        assert workers.processes[1 - lost].wait(90) == LOST
    finally:
        if name == "SIGSTOP":
            workers.processes[lost].kill()
    codes, _, errors = workers.wait()
    assert errors[1 - lost].startswith("error: ")
    assert "to resume from the last checkpoint" in errors[1 - lost]
    assert errors[1 - lost].count("\n") == 1
    if name == "sleep":  # it ends, too, and says where it was
        assert codes[lost] == LOST
        assert f"{script}:" in errors[lost]
    assert last(script.parent / "run_0")[1][-1]["step"] == 24  # of the epoch before


def test_a_loss_that_is_not_finite_stops_all_at_the_same_step(quiet_python, script):
    codes, _, errors = Workers(quiet_python, script, FAULT="nan:1").wait()
    assert set(codes.values()) == {1}
    for text in errors.values():
        assert text == errors[0]
        assert text.startswith("error: the loss is nan at step 25; ckpt-24 is the last good checkpoint.")


def test_weights_that_differ_are_found_before_they_are_saved(quiet_python, script):
    codes, _, errors = Workers(quiet_python, script, FAULT="other:1").wait()
    assert set(codes.values()) == {1}
    for text in errors.values():
        assert text.startswith("error: worker 1 has other weights than the chief: ")
    assert last(script.parent / "run_0")[1][-1]["step"] == 24


@pytest.mark.parametrize(
    ("others", "env", "messages"),
    [
        (
            ["--learning_rate=0.01", "--holdout=10"],
            {},
            [
                "worker 1 was started with other settings than the chief: --holdout is 0 on the chief, 10 on worker 1",
                "--learning_rate is 0.001 on the chief, 0.01 on worker 1",
            ],
        ),
        ([], {"FAULT": "code:1"}, ["worker 1 computes another step than the chief"]),
    ],
)
def test_a_worker_that_was_started_otherwise_is_refused_by_all(others, env, messages, quiet_python, script):
    codes, _, errors = Workers(quiet_python, script, others={1: others}, **env).wait()
    assert set(codes.values()) == {1}, errors
    for text in errors.values():
        assert text.count("\n") == 1
        for message in messages:
            assert message in text
    assert not (script.parent / "run_0" / "checkpoints").exists()


def test_a_worker_that_does_not_come_up_is_named(quiet_python, script):
    flags = ["--worker_timeout=6"]
    runs = [Workers((sys.executable, quiet_python)[i], script, flags=flags, skipped=[i]) for i in range(2)]
    for missing, workers in enumerate(runs):
        codes, _, errors = workers.wait()
        assert codes == {1 - missing: LOST}
        assert re.fullmatch(
            rf"error: worker {missing} \(localhost:\d+\) did not come up in 6 s \(--worker_timeout\)\.\n",
            errors[1 - missing],
        )


CLUSTER = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no object"),
        ({"task": {"type": "worker", "index": 0}}, "has no cluster"),
        ({"cluster": {"ps": ["a:1"]}}, "has a job 'ps'"),
        ({"cluster": {"worker": "a:1"}}, "has 'a:1' for the addresses of worker"),
        ({"cluster": {"worker": ["a", "b:2"]}}, "for the addresses of worker"),
        ({"cluster": {"worker": ["a:1", "a:1"]}}, "has a:1 twice"),
        ({"cluster": {"chief": ["c:1", "d:1"], **CLUSTER}}, "has more than one chief"),
        ({"cluster": CLUSTER}, "has the task None"),
        ({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}, "of no job of the cluster"),
        ({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}, "has the index 2 for 2 of worker"),
        ({"cluster": CLUSTER, "task": {"type": "worker"}}, "has the index None"),
    ],
)
def test_a_cluster_that_is_none_is_refused(config, message, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(Error, match=f"^TF_CONFIG .*{re.escape(message)}.*: expected "):
        read_cluster()


def test_a_cluster_is_what_kubernetes_and_slurm_say(monkeypatch):
    assert read_cluster() == ()
    for alone in ("{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'):
        monkeypatch.setenv("TF_CONFIG", alone)
        assert read_cluster() == ()
    jobs = {"worker": ["a:1", "b:2"], "chief": ["c:3"]}
    config = {"cluster": jobs, "task": {"type": "worker", "index": "1"}, "environment": "cloud"}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert read_cluster() == (jobs, "worker", 1)
    monkeypatch.delenv("TF_CONFIG")
    slurm = {"PROCID": "2", "STEP_NUM_TASKS": "3", "STEP_NODELIST": "n[1-2]", "STEP_TASKS_PER_NODE": "2,1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert read_cluster() == ({"worker": ["n1:8888", "n1:8889", "n2:8888"]}, "worker", 2)


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
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
    with pytest.raises(Error, match="--slices=3 is no power of two"):
        layouts.TrainStep(layouts.noisy(), layouts.keras.optimizers.Adam(), slices=3)


def test_the_launcher_resumes_on_fewer_workers_and_leaves_no_orphan(quiet_python, start, script):
    command = [
        quiet_python,
        str(script),
        "--dataset=digits",
        "--slices=4",
        "--epochs=3",
        f"--workdir={script.parent}/run_0",
    ]
    launch = [sys.executable, str(ROOT / "scripts" / "launch_workers.py"), "--workers=2", f"--logs={script.parent}"]
    done = subprocess.run(
        [*launch, "--restarts=1", "--min_workers=1", "--", *command],
        capture_output=True,
        text=True,
        env=os.environ | {"FAULT": "SIGKILL:1"},
    )
    assert done.returncode == 0, done.stderr
    assert "worker 1 ended with 137" in done.stderr
    assert "restart 1 of 1, on 1 worker\n" in done.stderr
    assert "epoch 3 step 72" in done.stdout
    straight = script.parent / "straight"
    start(script, "--dataset=digits", "--slices=4", "--epochs=3", f"--workdir={straight}")
    assert last(script.parent / "run_0") == last(straight)
    process = subprocess.Popen([*launch, "--", *command, "--epochs=1000"], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 4 "):
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "To resume: " in rest
    running = subprocess.run(["pgrep", "-f", str(script)], capture_output=True, text=True).stdout
    assert not running
