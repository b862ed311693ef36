"""Runs in folders of any name, on file systems of any kind, and with readers beside them."""

import errno
import json
import os
import subprocess
import sys

from mnist import Error, checkpoint, files, finished
from mnist.loop import train_and_evaluate
from mnist.step import TrainStep

import keras
import pytest
import tensorflow as tf
from conftest import Calling, make_linear, nightly_but

NAMES = [
    *("a [1]", "[!a]", "a\\b", "*", "what?", 'it\'s "so" $HOME'),
    *("größe 数", "-dash", "new\nline", "%41+#&;", "{a,b}"),
]


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    """The weights after four steps of an undisturbed run."""
    return train(digits, str(tmp_path_factory.mktemp("plain") / "run"), 4)


def train(digits, workdir, max_steps, **options):
    """Trains a network that takes little time. Returns: its weights."""
    keras.utils.set_random_seed(0)
    step = TrainStep(make_linear(), keras.optimizers.SGD(0.1, momentum=0.9), seed=0)
    train_and_evaluate(step, digits, workdir, max_steps=max_steps, flags_text="", **options)
    return weights_of(step.model)


def weights_of(model):
    return [v.numpy().tobytes() for v in model.variables]


@pytest.mark.parametrize("name", nightly_but(["a [1]", "a\\b", "größe 数", "new\nline"], NAMES))
def test_a_run_in_a_folder_of_any_name_is_resumed_and_loaded(name, undisturbed, digits, tmp_path):
    workdir = str(tmp_path / name / name)
    train(digits, workdir, 2)
    weights = train(digits, workdir, 4)
    assert sorted(os.listdir(tmp_path)) == [name]
    assert weights == weights_of(finished.load(workdir).model) == undisturbed


def test_a_run_stays_in_its_folder_when_the_working_directory_changes(undisturbed, digits, tmp_path, monkeypatch):
    for folder in ("here", "elsewhere"):
        (tmp_path / folder).mkdir()
    for max_steps in (2, 4):
        monkeypatch.chdir(tmp_path / "here")
        weights = train(digits, "run", max_steps, interrupt=Calling(lambda: os.chdir(tmp_path / "elsewhere")))
    assert os.getcwd() == str(tmp_path / "elsewhere")
    assert os.listdir(tmp_path / "elsewhere") == []
    assert json.loads((tmp_path / "here" / "run" / "results.json").read_text())["steps"] == 4
    assert weights == undisturbed


@pytest.mark.parametrize("code", [None, errno.ENOSYS, errno.ENOTSUP])
def test_a_folder_is_held_once_and_free_again_after(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    if code:  # as on a network file system without locks
        monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        with files.lock(str(tmp_path)):
            with pytest.raises(Error, match=f"in use by process {os.getpid()} on "):
                files.lock(str(tmp_path)).__enter__()
            if not code:
                (tmp_path / ".lock").unlink()
                with pytest.raises(Error, match="in use by process"):
                    files.lock(str(tmp_path)).__enter__()


def test_a_run_saves_on_a_file_system_that_cannot_sync_folders(undisturbed, digits, tmp_path, monkeypatch):
    sync = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    train(digits, str(tmp_path / "run"), 2)
    assert train(digits, str(tmp_path / "run"), 4) == undisturbed


def test_a_reader_gets_the_newer_checkpoint_when_the_older_is_deleted_meanwhile(tmp_path, monkeypatch, caplog):
    variables = {"v": tf.Variable([1.0])}
    checkpoint.save(str(tmp_path), variables, {"step": 1}, keep=1)
    read = tf.train.load_checkpoint

    def saved_meanwhile(path):
        monkeypatch.setattr(tf.train, "load_checkpoint", read)
        variables["v"].assign([2.0])
        checkpoint.save(str(tmp_path), variables, {"step": 2}, keep=1)
        return read(path)

    monkeypatch.setattr(tf.train, "load_checkpoint", saved_meanwhile)
    tensors, metadata = checkpoint.load_newest(str(tmp_path))
    assert metadata["step"] == 2
    assert tensors["v"] == [2.0]
    assert not caplog.records


def test_files_are_utf_8_in_any_locale(tmp_path):
    code = "import sys\nfrom mnist import files\nfiles.write_atomically(sys.argv[1], '\\u6570\\n')"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "text")], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "text").read_bytes() == "\u6570\n".encode()
