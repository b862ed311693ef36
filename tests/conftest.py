"""What several test files share."""

import socket
import subprocess
import sys

from mnist import data

import numpy as np
import pytest


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
import gc, json, os, runpy, select, signal, socket, sys
import matplotlib.backends.backend_agg, mnist.pictures, mnist.train, scipy.stats, sklearn.datasets
import sklearn.metrics, tensorboard.plugins.hparams.api
path, client = sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
print(flush=True)
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
    if sys.argv[0] == "-m":
        del sys.argv[0]
        sys.path[0] = job["cwd"]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit(0)

while True:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    connection, _ = server.accept()
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


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """The path of a Python for `-m MODULE` and FILE that takes no time to import TensorFlow."""
    folder = tmp_path_factory.mktemp("python")
    path, client = str(folder / "socket"), folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, path=path))
    client.chmod(0o755)
    server = subprocess.Popen([sys.executable, "-c", SERVER, path, str(client)], stdout=subprocess.PIPE)
    server.stdout.readline()
    yield str(client)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
    server.wait()


@pytest.fixture(scope="session")
def start(python):
    """`start(program, *arguments, cwd=)` runs a module or a file as a command; returns what subprocess.run does."""

    def start(program, *arguments, cwd=None):
        command = [python, *([] if str(program).endswith(".py") else ["-m"]), str(program), *arguments]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True)

    return start
