"""Nothing is lost when processes are killed or stopped, files are damaged, or a disk is full."""

import contextlib
import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from mnist import Error, checkpoint, data
from mnist.cli import Interrupt
from mnist.loop import train_and_evaluate
from mnist.step import TrainStep

import keras
import pytest
import tensorflow as tf
from conftest import SMALL
from torture import differences, newest_step, torture


def train(workdir, **options):
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(size, name=f"dense{size}") for size in (32, 10)]
    layers = [keras.Input([28, 28, 1], name="images"), keras.layers.Flatten(name="flatten"), *dense]
    step = TrainStep(keras.Sequential(layers, name="small"), keras.optimizers.Adam(), seed=0)
    digits = data.load("digits")
    return train_and_evaluate(step, digits, str(workdir), **({"epochs": 3, "checkpoint_every": 20} | options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run with checkpoints at steps 48, 60 and 72."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def after_power_failure(tmp_path_factory):
    """A finished run, and a dict of what a power failure leaves of it for certain: files by path, without links."""
    folder, content, entries = tmp_path_factory.mktemp("power"), {}, {}

    def record(descriptor):
        path, number = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_ino
        if os.path.isdir(path):
            entries[number] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            content[number] = Path(path).read_bytes()

    def left(number, path):
        if number in content:
            yield path, content[number]
        for name, inner in entries.get(number, {}).items():
            yield from left(inner, path / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", record)
        train(folder / "new" / "run", flags_text="--epochs=3\n", max_steps=30)
    return folder, dict(left(folder.stat().st_ino, folder))


@pytest.mark.parametrize(
    "name",
    [
        *("flags.txt", "results.json", "metrics.jsonl", "checkpoints/ckpt-30.index", "checkpoints/ckpt-20.data*"),
        *("train/events.*", "validation/events.*[0-9].v2", "validation/events.*.hparams"),
    ],
)
def test_what_a_run_wrote_is_on_disk(name, after_power_failure):
    folder, left = after_power_failure
    [path] = (folder / "new" / "run").glob(name)
    assert left[path] == path.read_bytes()


COMPOSED = f"""
from mnist import train
from mnist.research.augment import Augment
from mnist.research.ema import EMA
from mnist.research.label_smoothing import LabelSmoothing
import keras

class Composed(EMA, LabelSmoothing, Augment):
    pass

{SMALL}
if __name__ == "__main__":
    train.launch(Composed, model=small)
"""


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        # This seed kills within the few seconds of a process.
        (["--epochs=4", "--steps_per_loop=3", "--eval_batch_size=2"], {"kills": 2, "seed": 4457}),
        # This seed kills the second of two workers, with two devices each, at a save. Then one process goes on alone.
        pytest.param(["--epochs=2"], {"kills": 1, "seed": 826, "workers": 2}, marks=pytest.mark.nightly),
    ],
)
def test_kill_9_at_any_moment_loses_nothing(flags, options, tmp_path):
    (tmp_path / "small.py").write_text(COMPOSED)
    flags = ["--dataset=digits", "--checkpoint_every=7", *flags]
    assert torture(str(tmp_path / "torture"), flags, module=str(tmp_path / "small.py"), **options) == []


@pytest.fixture
def running(tmp_path):
    """A process that trains for a long time and has saved its first checkpoint."""
    command = [sys.executable, "-m", "mnist.train", "--dataset=digits", "--epochs=2000", f"--workdir={tmp_path}/run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 60
    while not newest_step(str(tmp_path / "run")) and time.time() < deadline:
        time.sleep(0.05)
    yield process, tmp_path / "run"
    process.kill()
    process.wait()


def test_sigterm_saves_and_a_second_process_is_refused_before(running):
    process, workdir = running
    with pytest.raises(Error, match=r"in use by process \d+ on "):
        train(workdir)
    saved = newest_step(str(workdir))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 143
    assert f" -m mnist.train --workdir={workdir}\n" in out.partition("To resume: ")[2]
    assert newest_step(str(workdir)) >= saved
    assert f"stopped at step {newest_step(str(workdir))}" in out
    assert "Traceback" not in out


def test_a_run_whose_output_is_closed_saves(running):
    process, workdir = running
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    [path] = (workdir / "validation").glob("events.out.tfevents.[1-9]*")
    shown = [event.step for event in tf.compat.v1.train.summary_iterator(str(path))]
    assert newest_step(str(workdir)) >= max(shown) > 0


def test_a_signal_that_is_ignored_before_the_run_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGINT):
            with Interrupt() as interrupt:
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signum)
                deadline = time.time() + 20
                while interrupt.signum is None and time.time() < deadline:
                    time.sleep(0.01)
                assert interrupt.signum == signum
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_goes_on_when_its_output_cannot_be_written(tmp_path, capsys):
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full):
        train(tmp_path / "run", max_steps=30)
    assert newest_step(str(tmp_path / "run")) == 30
    assert (tmp_path / "run" / "results.json").exists()
    assert capsys.readouterr().err.count("cannot write to stdout") == 1


def test_a_second_ctrl_c_ends_at_once():
    """The process is busy in one long call, like an inner loop."""
    code = (
        "import os, signal, threading, time\n"
        "from mnist.cli import Interrupt\n"
        "def press():\n"
        "    for _ in range(2):\n"
        "        time.sleep(0.3)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "with Interrupt():\n"
        "    threading.Thread(target=press).start()\n"
        "    time.sleep(30)\n"
    )
    start = time.time()
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert process.returncode == 130
    assert time.time() - start < 25


DATA, INDEX = ".data-00000-of-00001", ".index"


def damage(path, changes):
    """Replaces the content of the files of a checkpoint by a function of it. None deletes the file."""
    for end, change in changes.items():
        file = path.with_name(path.name + end)
        if change:
            file.write_bytes(change(file.read_bytes()))
        else:
            file.unlink()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({DATA: lambda content: content[:1000]}, id="truncated"),
        pytest.param({INDEX: lambda content: content[:300] + b"?" + content[301:]}, id="one byte of the index"),
        pytest.param({DATA: None}, id="data lost"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_the_run_repeats_its_steps(finished, copy, changes, caplog):
    damage(copy / "checkpoints" / "ckpt-72", changes)
    _, state = checkpoint.load_newest(str(copy / "checkpoints"))
    assert state["step"] == 60
    assert "ckpt-72 is damaged" in caplog.text
    train(copy)
    assert differences(str(finished), str(copy)) == []


def test_a_damaged_checkpoint_does_not_count_among_the_kept(copy):
    damage(copy / "checkpoints" / "ckpt-72", {DATA: lambda content: b"damaged"})
    train(copy, max_steps=66, keep_checkpoints=1)  # resumes from 60
    assert sorted(path.stem for path in (copy / "checkpoints").glob("*.index")) == ["ckpt-66", "damaged-ckpt-72"]
    assert tf.train.latest_checkpoint(str(copy / "checkpoints")) == str(copy / "checkpoints" / "ckpt-66")


@pytest.mark.parametrize("changes", [{DATA: lambda content: bytes(len(content))}, {INDEX: None}])
def test_without_any_sound_checkpoint_the_run_refuses_to_start_over(copy, changes):
    for step in (48, 60, 72):
        damage(copy / "checkpoints" / f"ckpt-{step}", changes)
    before = (copy / "results.json").read_bytes()
    with pytest.raises(Error, match="none of the 3 checkpoints"):
        train(copy)
    assert (copy / "results.json").read_bytes() == before


def test_the_files_of_a_killed_save_are_ignored(finished, copy):
    for end in (DATA, INDEX):
        shutil.copy(copy / "checkpoints" / f"ckpt-72{end}", copy / "checkpoints" / f"tmp{end}")
    shutil.copy(copy / "checkpoints" / f"ckpt-72{DATA}", copy / "checkpoints" / f"ckpt-80{DATA}")
    train(copy)
    assert differences(str(finished), str(copy)) == []


@pytest.mark.parametrize(
    ("names", "failing", "message"),
    [
        (["remove"], "results.json", "cannot delete .*results.json: Input/output error"),
        (["listdir", "scandir"], "checkpoints", "cannot read .*checkpoints: Input/output error"),
    ],
)
def test_a_failing_call_ends_a_resume_with_one_line(names, failing, message, copy, monkeypatch):
    (copy / "checkpoints" / "checkpoint").unlink()

    def call(original, path="."):
        if str(path).endswith(failing):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path)

    for name in names:
        monkeypatch.setattr(os, name, functools.partial(call, getattr(os, name)))
    with pytest.raises(Error, match=message):
        train(copy, epochs=4)


@contextlib.contextmanager
def mounted(path, *arguments):
    path.mkdir(exist_ok=True)
    if subprocess.run(["mount", *arguments, str(path)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_stops_the_run_which_resumes_when_there_is_space(finished, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1800k", "tmpfs") as disk:
        with pytest.raises(Error, match="No space left"):
            train(disk / "run")
        assert 20 <= checkpoint.load_newest(str(disk / "run" / "checkpoints"))[1]["step"] < 72
        assert not list((disk / "run" / "checkpoints").glob("tmp*"))
        subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
        train(disk / "run")
        assert differences(str(finished), str(disk / "run")) == []
