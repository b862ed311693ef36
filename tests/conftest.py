"""Fixtures and helpers that several test files share, and the order of the tests."""

import atexit
import collections
import contextlib
import gc
import importlib
import io
import os
import runpy
import sys
import tempfile
import traceback
import types
import zipfile

import absl.app  # defines flags, which run_here() would remove after its first command
import absl.flags
import absl.logging
import hypothesis
import numpy as np
import pytest
from absl.testing import flagsaver

hypothesis.settings.register_profile("small", max_examples=40, deadline=10_000)
hypothesis.settings.register_profile("large", max_examples=5_000, deadline=10_000)  # --hypothesis-profile=large
hypothesis.settings.load_profile("small")

# Part of a script: a network that trains quickly, for tests that do not depend on the network.
SMALL = """
def small():
    layers = keras.layers
    inner = [layers.Conv2D(4, 5, strides=3, activation="relu"), layers.Flatten(), layers.Dense(10)]
    return keras.Sequential([keras.Input([28, 28, 1]), *inner])
"""


def nightly_but(daily, values):
    """Returns the values of one parameter. Those that are not in `daily` are marked `nightly`."""
    return [value if value in daily else pytest.param(value, marks=pytest.mark.nightly) for value in values]


def make_linear(*inner, **last):
    """Makes a network that takes little time: `inner` layers on the flat image, and a dense layer of ten logits."""
    import keras  # here, because the process that only distributes tests needs no TensorFlow

    flat = [keras.Input([28, 28, 1]), keras.layers.Flatten()]
    return keras.Sequential([*flat, *inner, keras.layers.Dense(10, **last)])


def idx_bytes(array):
    """Returns a uint8 array as the bytes of an IDX file: magic number, shape, data."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def npy_bytes(array, **header):
    """Returns the bytes of an npy file, with changes to its header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array) | header)
    return file.getvalue() + array.tobytes("A")


def zip_bytes(members, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npz_bytes(arrays):
    return zip_bytes({f"{name}.npy": npy_bytes(np.asarray(array)) for name, array in arrays.items()})


def csv_rows(images, labels):
    """Returns a list with the line of each image in a CSV file."""
    return [",".join(map(str, row)) for row in np.column_stack([labels, images.reshape(-1, 784)]).tolist()]


def image_bytes(image, end="png", **options):
    """Returns the bytes of an image file, of a picture of Pillow."""
    file = io.BytesIO()
    image.save(file, end, **options)
    return file.getvalue()


def random_examples(count, seed=0):
    """Returns random uint8 images `[count, 28, 28]` and labels `[count]` in which every digit is as frequent."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 28, 28), np.uint8)
    return images, random.permutation(np.arange(count) % 10).astype(np.uint8)


def write_idx_folder(path, train=60, test=20):
    """Writes the four IDX files of a tiny data set, the same for the same sizes. Returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate((("train", train), ("t10k", test))):
        images, labels = random_examples(count, seed)
        (path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return path


@pytest.fixture
def idx_folder(tmp_path):
    return write_idx_folder(tmp_path / "tiny")


@pytest.fixture(scope="session")
def digits():
    from mnist import data  # here, as in make_linear

    return data.load("digits")  # 24 steps of 64 an epoch


@pytest.fixture(scope="session", autouse=True)
def set_check_step():
    """Returns a function that sets the default of --check_step, which is off in tests, because it takes half a second.

    Commands in a process of their own have it.
    """
    from mnist.run import Plan  # here, as in make_linear

    setting = vars(Plan)["check_step"]
    before, setting.default = setting.default, False
    yield lambda value: setattr(setting, "default", value)
    setting.default = before


class StopAfter:
    """An interrupt that asks a run to stop when the run reads it for the n-th time."""

    def __init__(self, n):
        self.n = n

    @property
    def signum(self):
        self.n -= 1
        return 15 if self.n < 0 else None


class Calling:
    """An interrupt that calls a function whenever a run reads it. The result asks the run to stop if it is true."""

    def __init__(self, function):
        self.function = function

    @property
    def signum(self):
        return 15 if self.function() else None


def bits_of(step):
    """Returns the bytes of each variable that a checkpoint of a step holds, a dict."""
    from mnist import checkpoint

    return {name: variable.numpy().tobytes() for name, variable in checkpoint.variables_of(step).items()}


def read_events(folder):
    """Returns a dict from the tags of an event folder to lists of steps and tensors."""
    import tensorflow as tf
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), tensor_size_guidance=collections.defaultdict(int)).Reload()
    return {
        tag: [(event.step, tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


@pytest.fixture(scope="session")
def start():
    """Returns `run_here`."""
    return run_here


def run_here(program, *arguments, cwd=None, env=None):
    """Runs a module or a .py file as `python -m MODULE` or `python FILE` does, but without a new process.

    TensorFlow has started already. What has to be set before needs a process of its own.

    Returns: a namespace with `returncode`, `stdout` and `stderr`, like `subprocess.run`.
    """
    flags, flag_names, modules = absl.flags.FLAGS, set(absl.flags.FLAGS), set(sys.modules)
    folder, environment, path = os.getcwd(), dict(os.environ), list(sys.path)
    argv, handler = sys.argv, absl.logging.get_absl_handler().python_handler
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, flagsaver.flagsaver():
        flags.unparse_flags()
        stream, handler.stream = handler.stream, err
        try:
            os.chdir(cwd or folder)
            os.environ.update(env or {})
            sys.argv = [str(program), *map(str, arguments)]
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = _run_main(str(program))
        finally:
            handler.stream, sys.argv, sys.path[:] = stream, argv, path
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            for name in set(flags) - flag_names:  # of the user's file
                delattr(flags, name)
            for group in flags.flags_by_module_dict().values():  # a file that is imported may hide a flag
                group[:] = [flag for flag in group if flag.name in flags]
            for name in set(sys.modules) - modules:  # another test may have a file of the same name
                if str(getattr(sys.modules[name], "__file__", None) or "").startswith(tempfile.gettempdir()):
                    del sys.modules[name]
            importlib.invalidate_caches()
            flags.mark_as_parsed()
        texts = []
        for file in (out, err):
            file.flush()
            file.seek(0)
            texts.append(file.read())
    return types.SimpleNamespace(returncode=code, stdout=texts[0], stderr=texts[1])


@pytest.fixture
def command(monkeypatch, capfd):
    """Runs `python -m mnist.train` with arguments, here. Returns: exit code or message, stdout, stderr."""
    from mnist import train

    def run(*arguments, **launched):
        monkeypatch.setattr(sys, "argv", ["mnist.train", *arguments])
        with flagsaver.flagsaver():
            absl.flags.FLAGS.unparse_flags()
            with pytest.raises(SystemExit) as exit:
                train.launch(**launched)
        out, err = capfd.readouterr()
        return exit.value.code, out, err

    yield run
    absl.flags.FLAGS.mark_as_parsed()


def _run_main(program):
    try:
        if program.endswith(".py"):
            sys.path.insert(0, os.path.dirname(os.path.abspath(program)))
            runpy.run_path(program, run_name="__main__")
        else:
            sys.path.insert(0, os.getcwd())
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


# The files that take longest come first, so that at the end no process works long while the other has nothing to do.
LONGEST = [
    *("replicas", "trust", "readme", "sweep", "variants", "faithful", "seam_step", "seam_flags", "classes"),
    *("self_check", "portable", "wrong_numbers"),
    *("compare_with_fit", "train", "loop", "seam_run", "seam_watch", "research", "best", "export", "any_folder"),
    *("evaluate", "command", "view", "rebuild", "summaries", "traced", "own_scripts", "pictures", "predict"),
]


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_collection_finish(session):
    # Otherwise each full pass of the garbage collector visits all modules of TensorFlow, and there are many passes.
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        # A worker has reported everything by then, and Python would take ten seconds to free all graphs of its tests.
        atexit.register(os._exit, 0)
