"""What several test files share."""

import atexit
import contextlib
import gc
import os
import socket
import subprocess
import sys
import tempfile

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("small", max_examples=40, deadline=10_000)
hypothesis.settings.register_profile("large", max_examples=5_000, deadline=10_000)  # --hypothesis-profile=large
hypothesis.settings.load_profile("small")

# Of a script: a network that takes little time, for what does not depend on it.
SMALL = """
def small():
    layers = keras.layers
    inner = [layers.Conv2D(4, 5, strides=3, activation="relu"), layers.Flatten(), layers.Dense(10)]
    return keras.Sequential([keras.Input([28, 28, 1]), *inner])
"""


def idx_bytes(array):
    """A uint8 array as an IDX file holds it: magic number, shape, data."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def random_examples(count, seed=0):
    """Random uint8 images `[count, 28, 28]` and labels `[count]` that hold each digit in turn."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 28, 28), np.uint8)
    return images, random.permutation(np.arange(count) % 10).astype(np.uint8)


def write_idx_folder(path, train=60, test=20):
    """Writes the four IDX files of a tiny data set, the same for the same sizes; returns `path`."""
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
    from mnist import data  # not for the process that only hands out tests: this imports TensorFlow

    return data.load("digits")  # 24 steps of 64 an epoch


class StopAfter:
    """Asks a run to stop when it is asked for the n-th time."""

    def __init__(self, n):
        self.n = n

    @property
    def signum(self):
        self.n -= 1
        return 15 if self.n < 0 else None


# A Python that has imported TensorFlow already: it forks for each program that `CLIENT` asks it to run.
SERVER = """
import atexit, contextlib, gc, json, os, runpy, select, signal, socket, sys, threading, types
import unittest.mock
import matplotlib.backends.backend_agg, mnist.summaries, mnist.train, rich._emoji_codes, scipy.stats, sklearn.datasets
import sklearn.metrics, tensorboard.plugins.hparams.api, tensorboard.summary
from mnist import model
from mnist.data import batches
from mnist.distributed import replicas
from mnist.step import TrainStep, View, compile_step, make_train_loop, train_step
from mnist.summaries import event_files
from tensorflow.python.autograph.core import converter
from tensorflow.python.autograph.impl import api

# The code of graphs, which else each program would make of these functions anew: a third of its time.
own = vars(TrainStep)
functions = [own[n] for n in ("__call__", "prepare_batch", "compute_gradients", "compute_loss", "apply_gradients")]
functions += [own["_slice_gradients"], replicas.Replicas.mean, replicas.Replicas._mean_of_slices]
functions += [model.call_to_train, train_step._total, event_files._write_steps.python_function]
functions += [model.make_predict_logits(None).python_function]
gather = next(code for code in batches.epoch_batches.__code__.co_consts if isinstance(code, types.CodeType))
functions += [types.FunctionType(gather, vars(batches), None, None, (types.CellType(None),) * len(gather.co_freevars))]
functions += [make_train_loop(unittest.mock.MagicMock())[1].python_function]
functions += [compile_step(unittest.mock.MagicMock()).python_function, View.writing]
for function in functions:
    for called in (True, False):  # by tf.function() itself, or by what that compiles
        options = converter.ConversionOptions(recursive=True, user_requested=called, optional_features=())
        api._convert_actual(function, converter.ProgramContext(options))

client = sys.argv[1]
server = socket.socket(fileno=0)
gc.collect()
gc.freeze()

def run(job, files):
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    sys.executable = client
    sys.argv = job["argv"]
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            sys.path[0] = job["cwd"]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(sys.argv[0])
            runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit(0)
    except SystemExit as exit:
        if not isinstance(exit.code, (int, str)) or not sys.stderr or "TF_CONFIG" in os.environ:
            raise
        # Ends as Python does, but for taking all modules apart, a fifth of a second. What fails is left to Python.
        try:
            if isinstance(exit.code, str):
                print(exit.code, file=sys.stderr)
            threading._shutdown()
            atexit._run_exitfuncs()
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
        except Exception:
            raise exit
        os._exit(exit.code if isinstance(exit.code, int) else 1)

parent = os.getppid()
server.settimeout(5)
while os.getppid() == parent:  # which may be killed
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        connection, _ = server.accept()
    except TimeoutError:
        continue
    message, files, _, _ = socket.recv_fds(connection, 2**20, 3)
    if not message:
        break
    if not os.fork():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        child = os.fork()
        if not child:
            run(json.loads(message), files)
        connection.sendall(b"%d\\n" % child)
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if select.select([connection], [], [], 0.02)[0]:
                os.kill(child, signal.SIGKILL)  # as the client was
        with contextlib.suppress(OSError):  # the client was killed
            connection.sendall(b"%d\\n" % os.waitstatus_to_exitcode(ended[1]))
        os._exit(0)
    for file in [connection.detach(), *files]:
        os.close(file)
"""
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({path!r})
job = dict(argv=sys.argv[1:], cwd=os.getcwd(), env=dict(os.environ))
socket.send_fds(connection, [json.dumps(job).encode()], [0, 1, 2])
answers = connection.makefile()
child = int(answers.readline())
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
    signal.signal(signum, lambda signum, _: os.kill(child, signum))
code = int(answers.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


@contextlib.contextmanager
def quick_python(**env):
    """While entered, there is a Python for `-m MODULE` and FILE that takes no time to import TensorFlow: its path.

    `env` is what counts for TensorFlow as it is imported.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, client = os.path.join(folder, "socket"), os.path.join(folder, "python")
        with open(client, "w") as file:
            file.write(CLIENT.format(python=sys.executable, path=path))
        os.chmod(client, 0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()  # who connects before the server has imported everything waits
            command, env = [sys.executable, "-c", SERVER, client], os.environ | env
            server = subprocess.Popen(command, env=env, stdin=listener, stdout=subprocess.PIPE)
        try:
            yield client
        finally:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
            server.communicate()


# The files that take longest come first, so that at the end no process works long while the other has nothing to do.
LONGEST = [
    *(
        "replicas",
        "research",
        "variants",
        "compare_with_fit",
        "trust",
        "readme",
        "sweep",
        "any_folder",
        "loop",
        "export",
    ),
    *("command", "faithful", "classes", "rebuild", "train", "summaries", "own_scripts", "recipes", "predict"),
]


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_collection_finish(session):
    # Else each full pass of the garbage collector looks through all modules of TensorFlow, and there are many passes.
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        # A worker has said everything by then. To take all graphs of its tests apart would take it ten seconds.
        atexit.register(os._exit, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Has the workers of pytest-xdist share one such Python, which starts while they do."""
    if not hasattr(node.config, "quick_python"):
        context = contextlib.ExitStack()
        node.config.quick_python = context.enter_context(quick_python())
        node.config.add_cleanup(context.close)
    node.workerinput["quick_python"] = node.config.quick_python


@pytest.fixture(scope="session")
def python(request):
    """The path of a Python for `-m MODULE` and FILE that takes no time to import TensorFlow."""
    if shared := getattr(request.config, "workerinput", {}).get("quick_python"):
        yield shared
    else:
        with quick_python() as own:
            yield own


@pytest.fixture(scope="session")
def start(python):
    """`start(program, *arguments, cwd=)` runs a module or a file as a command; returns what subprocess.run does."""

    def start(program, *arguments, cwd=None):
        command = [python, *([] if str(program).endswith(".py") else ["-m"]), str(program), *arguments]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True)

    return start
