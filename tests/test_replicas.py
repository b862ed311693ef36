"""A run has the same bits wherever its slices are computed, and the loss of a process costs only time."""

import json
import os
import pathlib
import subprocess
import sys
import time

from mnist import LOST, checkpoint

import layouts
import pytest
from launch_workers import _free_ports

ROOT = pathlib.Path(__file__).parent.parent
# Does at the beginning of the second epoch, on one worker, what FAULT says.
SCRIPT = """
import json, os, signal, time
from mnist import train
from mnist.step import TrainStep

fault, _, worker = os.environ.get("FAULT", "").partition(":")
index = json.loads(os.environ.get("TF_CONFIG") or '{"task": {"index": 0}}')["task"]["index"]

class Step(TrainStep):
    def epoch_order(self, examples, epoch):
        if epoch == 1 and worker == str(index):
            if fault == "sleep":
                time.sleep(100)
            elif fault == "raise":
                raise RuntimeError("a fault of its own")
            elif fault == "nan":
                self.model.trainable_variables[0].assign(self.model.trainable_variables[0] * float("nan"))
            else:
                os.kill(os.getpid(), getattr(signal, fault))
        return super().epoch_order(examples, epoch)

    def compute_loss(self, images, labels):
        loss, logits = super().compute_loss(images, labels)
        return loss * (2.0 if fault == "code" and worker == str(index) else 1.0), logits

if __name__ == "__main__":
    train.launch(Step)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


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
                env=os.environ | env | {"TF_CONFIG": json.dumps(config), "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def wait(self, seconds=60):
        """Returns: exit codes, and what was written to stdout and stderr, by worker."""
        limit = time.monotonic() + seconds
        try:
            texts = {i: p.communicate(timeout=limit - time.monotonic()) for i, p in self.processes.items()}
        finally:
            for process in self.processes.values():
                process.kill()
        codes = {i: process.returncode for i, process in self.processes.items()}
        return codes, *({i: text[n] for i, text in texts.items()} for n in (0, 1))


def last(folder):
    """The variables, and the history, of a run's newest checkpoint."""
    tensors, metadata = checkpoint.load_newest(str(folder / "checkpoints"))
    return {name: tensor.tobytes() for name, tensor in tensors.items()}, metadata["history"]


def test_every_step_has_the_same_bits_on_any_layout(tmp_path):
    launcher = [sys.executable, str(ROOT / "scripts" / "launch_workers.py"), f"--logs={tmp_path}"]
    worker = [sys.executable, layouts.__file__, str(tmp_path)]
    done = subprocess.run([*launcher, "--workers=2", "--", *worker], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first.keys() == second.keys() > {"plain", *layouts.NAMES}
    for name in first:
        found = first[name] | second[name]
        assert len(found) == 3, name
        expected = found.pop("alone")
        for layout, digests in found.items():
            assert digests == expected, f"{name}, {layout}: {[k for k in expected if digests[k] != expected[k]]}"


def test_a_run_stops_on_one_layout_and_resumes_on_another(python, start, script):
    flags = ("--holdout=100", "--early_stopping_patience=2", "--profile=30:31")
    stages = ("--max_steps=20", "--max_steps=40", "--epochs=3")
    straight, moved = script.parent / "straight", script.parent / "run_0"
    for stage in stages:
        done = start(script, "--dataset=digits", "--slices=4", f"--workdir={straight}", *flags, stage)
        assert done.returncode == 0, done.stderr
    for count, stage in zip((2, 1, 4), stages, strict=True):
        codes, texts, errors = Workers(python, script, count, (*flags, stage)).wait()
        assert set(codes.values()) == {0}, errors
        if count > 1:
            assert [texts[i].splitlines()[0] for i in range(count)] == [
                f"slices {2 * i}-{2 * i + 1} of 4 on worker {i} of 2"
                if count == 2
                else f"slice {i} of 4 on worker {i} of 4"
                for i in range(count)
            ]
            assert all(len(texts[i].splitlines()) == 1 and not errors[i] for i in range(1, count))
    assert last(moved) == last(straight)
    left_out = {"train_seconds", "images_per_second"}
    results = [json.loads((folder / "results.json").read_text()) for folder in (moved, straight)]
    assert len({json.dumps({k: r[k] for k in r.keys() - left_out}, sort_keys=True) for r in results}) == 1
    assert not (script.parent / "run_1").exists()  # the chief alone writes


@pytest.mark.parametrize(
    ("fault", "code"),
    [("SIGKILL:1", LOST), ("SIGKILL:0", LOST), ("SIGSTOP:1", LOST), ("sleep:1", LOST), ("sleep:0", LOST)],
)
def test_the_loss_of_a_worker_ends_all_in_a_line(fault, code, script):
    name, _, lost = fault.partition(":")
    began = time.monotonic()
    workers = Workers(sys.executable, script, flags=["--worker_timeout=30"], FAULT=fault)
    other = 1 - int(lost)
    try:
        assert workers.processes[other].wait(60) == code
    finally:
        if name == "SIGSTOP":
            workers.processes[int(lost)].kill()
    codes, _, errors = workers.wait(30)
    assert time.monotonic() - began < 60
    assert errors[other].startswith("error: ")
    assert "from the last checkpoint" in errors[other]
    assert errors[other].count("\n") == 1
    if name == "sleep":
        assert codes[int(lost)] == code
        assert "This one was at" in errors[int(lost)]
    assert last(script.parent / "run_0")[1][-1]["step"] == 24  # the epoch before
