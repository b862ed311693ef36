"""Runs that processes share: the same bits on any layout, and a lost process costs only time."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from mnist import LOST, checkpoint
from mnist.launch_workers import free_ports
from mnist.run import OF_THE_HOUR

import layouts
import pytest
from conftest import SMALL, nightly_but, read_events
from test_research import NAMES

ROOT = pathlib.Path(__file__).parents[2]
NIGHTLY = pytest.mark.nightly
LAYOUTS = ("counting", "noisy")
LAUNCHER = [sys.executable, "-m", "mnist.launch_workers", "--workers=2"]
# A script whose step has a fault, named by FAULT, on one worker at the beginning of the second epoch.
SCRIPT = """
import json, os, signal, time
from absl import flags
from mnist import train  # before TensorFlow, whose C++ it quiets
from mnist.step import Recomputation, TrainStep
import keras
import tensorflow as tf

def find_fault():  # not in globals, because a resume compares those that epoch_order reads
    fault, _, worker = os.environ.get("FAULT", "").partition(":")
    index = json.loads(os.environ.get("TF_CONFIG") or '{"task": {"index": 0}}')["task"]["index"]
    return fault if worker == str(index) else ""

flags.DEFINE_bool("writes", False, "Whether the step writes summaries.")

class Step(TrainStep):
    def epoch_order(self, examples, epoch):
        if (fault := find_fault()) and epoch == 1:
            if fault == "sleep":
                time.sleep(100)
            elif fault == "nan":
                self.model.trainable_variables[-1].assign([float("nan")] * 10)
            elif fault == "flip":
                take = Recomputation.take

                def take_and_flip(self, number, take_step):  # flips a bit of each second computation
                    calls = []

                    def flipping():
                        result = take_step()
                        if len(calls) == 1:
                            step.model.trainable_variables[-1].assign_add([1e-6] * 10)
                        calls.append(1)
                        return result

                    return take(self, number, flipping)

                step, Recomputation.take = self, take_and_flip
            elif fault == "other":
                self.model.trainable_variables[-1].assign_add([1e-6] * 10)
            else:
                time.sleep(1)  # the chief saves, and may wait for this worker before
                os.kill(os.getpid(), getattr(signal, fault))
        return super().epoch_order(examples, epoch)

    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        if flags.FLAGS.writes:
            with self.view.every(4):
                tf.summary.scalar("own/loss", loss)
        return loss * (2.0 if find_fault() == "code" else 1.0), logits

"""
SCRIPT += f"""{SMALL}
if __name__ == "__main__":
    train.launch(Step, model=small)
"""


FLAGS = ("--holdout=100", "--early_stopping_patience=2", "--profile=3:4", "--steps_per_loop=10")
FLAGS += ("--writes", "--norms_every=4", "--histograms_every=6")


def write_script(folder):
    (folder / "script.py").write_text(SCRIPT)
    return folder / "script.py"


@pytest.fixture
def script(tmp_path):
    return write_script(tmp_path)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of an undisturbed run in one process, with `FLAGS`."""
    script = write_script(tmp_path_factory.mktemp("straight"))
    done = run(command(script, "run", *FLAGS))
    assert done.returncode == 0, done.stderr
    return script.parent / "run"


def command(script, folder, *flags):
    """Returns the command that trains in a folder beside the script."""
    workdir = f"--workdir={script.parent / folder}"
    return [sys.executable, str(script), "--dataset=digits", "--slices=4", "--epochs=3", workdir, *flags]


def run(arguments, **env):
    return subprocess.run(arguments, capture_output=True, text=True, env=os.environ | env)


class Workers:
    """The processes of one run of a script.

    Args:
      flags: a list. Flags of all processes.
      missing: a worker that is not started.
      env: further variables of the environment.
    """

    def __init__(self, script, flags=(), missing=None, **env):
        self.processes, addresses = {}, [f"localhost:{port}" for port in free_ports(2)]
        for i in {0, 1} - {missing}:
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            self.processes[i] = subprocess.Popen(
                command(script, f"run_{i}", *flags),  # they share no folder
                env=os.environ | env | {"TF_CONFIG": json.dumps(config)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def wait(self, seconds=120):
        """Returns three dicts from workers: to exit codes, to stdout and to stderr."""
        limit = time.monotonic() + seconds
        try:
            texts = {i: p.communicate(timeout=limit - time.monotonic()) for i, p in self.processes.items()}
        finally:
            for process in self.processes.values():
                process.kill()
        codes = {i: process.returncode for i, process in self.processes.items()}
        return codes, *({i: both[n] for i, both in texts.items()} for n in (0, 1))


def last(folder):
    """Returns the variables and the history of the newest checkpoint of a run."""
    tensors, metadata = checkpoint.load_newest(str(folder / "checkpoints"))
    return {name: tensor.tobytes() for name, tensor in tensors.items()}, metadata["history"]


def shown(folder):
    """Returns a dict from the tags of the training, without its speed, to lists of steps and bytes."""
    events = read_events(folder / "train").items()
    kept = {tag: points for tag, points in events if not tag.startswith(("__", "run", "speed"))}
    return {tag: [(step, value.tobytes()) for step, value in points] for tag, points in kept.items()}


@pytest.mark.parametrize("names", nightly_but([LAYOUTS], [LAYOUTS, ()]), ids=["few", "all"])
def test_every_step_has_the_same_bits_on_any_layout(names, tmp_path):
    worker = [sys.executable, layouts.__file__, str(tmp_path), *names]
    path = os.pathsep.join(str(ROOT / place) for place in ("tests", "tests/contract"))
    done = run([*LAUNCHER, f"--logs={tmp_path}", "--", *worker], PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first.keys() == second.keys()
    assert set(first) == set(names) or {part for name in first for part in name.split("+")} > {"plain", *NAMES}
    for name in first:
        found = first[name] | second[name]
        assert len(found) == 3, name
        expected = found.pop("alone")
        for layout, digests in found.items():
            assert digests == expected, f"{name}, {layout}: {[k for k in expected if digests[k] != expected[k]]}"


def test_a_signal_at_one_worker_saves_on_all_and_another_layout_resumes(script, straight):
    codes, texts, errors = Workers(script, flags=[*FLAGS, "--verify_every=12"], FAULT="SIGTERM:1").wait()
    assert set(codes.values()) == {128 + signal.SIGTERM}, errors
    assert texts[0].startswith("slices 0-1 of 4 on worker 0 of 2\n")
    assert f"stopped at step 32, saved in {script.parent}/run_0. To resume: " in texts[0]
    assert texts[1] == "slices 2-3 of 4 on worker 1 of 2\n"
    assert not (script.parent / "run_1").exists()  # the chief alone writes
    done = run(command(script, "run_0", *FLAGS, "--devices=2"))
    assert done.returncode == 0, done.stderr
    assert "resuming from step 32" in done.stdout
    moved = script.parent / "run_0"
    assert last(moved) == last(straight)
    assert shown(moved) == shown(straight)
    assert [step for step, _ in shown(moved)["own/loss"]] == list(range(4, 67, 4))
    results = [json.loads((folder / "results.json").read_text()) for folder in (moved, straight)]
    numbers = [{k: v for k, v in result.items() if k not in OF_THE_HOUR} for result in results]
    assert numbers[0] == numbers[1]


# The launcher's test kills worker 1 every day.
@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["SIGKILL:0", "SIGKILL:1", "SIGSTOP:1", "sleep:0"])
def test_the_loss_of_a_worker_ends_all_in_a_line(fault, script):
    name, _, lost = fault.partition(":")
    lost = int(lost)
    workers = Workers(script, flags=["--worker_timeout=30"], FAULT=fault)
    try:
        assert workers.processes[1 - lost].wait(90) == LOST
    finally:
        if name == "SIGSTOP":
            workers.processes[lost].kill()
    codes, _, errors = workers.wait()
    assert errors[1 - lost].startswith("error: ")
    assert "to resume from the last checkpoint" in errors[1 - lost]
    assert errors[1 - lost].count("\n") == 1
    if name == "sleep":  # the lost worker ends, too, and names the line where it was
        assert codes[lost] == LOST
        assert f"{script}:" in errors[lost]
    assert last(script.parent / "run_0")[1][-1]["step"] == 24  # the end of the first epoch


@pytest.mark.parametrize(
    ("fault", "message", "saved"),
    [
        pytest.param("nan:1", "error: the loss is nan at step 25; ckpt-24 is the last good", True, marks=NIGHTLY),
        ("other:1", "error: worker 1 has other weights than the chief: ", True),
        ("flip:1", "error: step 29 had other bits when it was computed again on worker 1, first in model/3 (", True),
        pytest.param("code:1", "error: worker 1 computes another step than the chief", False, marks=NIGHTLY),
    ],
)
def test_a_fault_of_one_worker_stops_all_with_the_same_error(fault, message, saved, script):
    codes, _, errors = Workers(script, flags=["--verify_every=7"], FAULT=fault).wait()
    assert set(codes.values()) == {1}, errors
    for text in errors.values():
        assert text.startswith(message)
        assert text.count("\n") == 1
    assert (script.parent / "run_0" / "checkpoints").exists() == saved
    assert not saved or last(script.parent / "run_0")[1][-1]["step"] == 24


def test_a_worker_that_does_not_start_is_named(script):
    codes, _, errors = Workers(script, flags=["--worker_timeout=6"], missing=0).wait()
    assert codes == {1: LOST}
    expected = r"error: worker 0 \(localhost:\d+\) did not come up in 6 s \(--worker_timeout\)\.\n"
    assert re.fullmatch(expected, errors[1])


def test_the_launcher_halves_the_workers_down_to_the_minimum():
    lost = [sys.executable, "-c", f"raise SystemExit({LOST})"]
    launch = [sys.executable, "-m", "mnist.launch_workers", "--workers=4", "--restarts=3", "--min_workers=2"]
    done = run([*launch, "--", *lost])
    assert done.returncode == LOST
    assert re.findall("on ([0-9]) workers?$", done.stderr, re.MULTILINE) == ["2", "2", "2"]


def test_the_launcher_resumes_on_fewer_workers(script, straight):
    flags = [f"--logs={script.parent}", "--restarts=1", "--min_workers=1"]
    done = run([*LAUNCHER, *flags, "--", *command(script, "run_0", *FLAGS)], FAULT="SIGKILL:1")
    assert done.returncode == 0, done.stderr
    assert "to resume from the last checkpoint" in done.stderr  # the line of the worker that is left
    assert "worker 1 ended with 137" in done.stderr
    assert "restart 1 of 1, on 1 worker\n" in done.stderr
    assert "epoch 3 step 66" in done.stdout
    assert last(script.parent / "run_0") == last(straight)


@pytest.mark.nightly
def test_the_launcher_leaves_no_orphan(script):
    longer = [flag.replace("--epochs=3", "--epochs=1000") for flag in command(script, "run_0")]
    endless = [*LAUNCHER, f"--logs={script.parent}", "--", *longer]
    process = subprocess.Popen(endless, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 1 "):
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "To resume: " in rest
    assert not run(["pgrep", "-f", str(script)]).stdout
