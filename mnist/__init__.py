"""A custom TensorFlow training loop for MNIST. `python -m mnist` lists its commands.

Importing this package is quick, because it does not import TensorFlow. It makes the later import of TensorFlow quiet
and the import of Keras faster.
"""

import contextlib
import importlib.machinery
import os
import signal
import sys
import threading

__version__ = "1.0"

# TensorFlow prints lines with these words at every start without a GPU, before it reads the log level.
_CHATTER = (
    "All log messages before absl::InitializeLog()",
    "oneDNN custom operations are on",
    "cudart_stub.cc",
    "cuda_platform.cc",
    "cpu_feature_guard.cc",
    "To enable the following instructions",
)


_ERASE = b"\r\x1b[K"  # erases the line of a terminal


class Error(Exception):
    """A mistake that the user can correct. Commands print it without a traceback and exit with its `status`."""

    status = 1


LOST = 75  # exit code of a command that lost another process of its run: started again, it resumes


class _Finder:
    """A finder that runs the imports of this package, TensorFlow and Keras inside of context managers."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in _CONTEXTS and not name.startswith("mnist."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec:
            import_module = spec.loader.exec_module

            def exec_module(module):
                with _ctrl_c_ends(), _CONTEXTS.get(name, contextlib.nullcontext)():
                    import_module(module)

            spec.loader.exec_module = exec_module
        return spec


@contextlib.contextmanager
def _ctrl_c_ends():
    """Makes Ctrl-C end a program without a traceback, because NumPy and TensorFlow make an ImportError of it.

    It changes nothing in a notebook, and outside of the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or hasattr(sys, "ps1") or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    stderr = os.dup(2)  # `_quiet` redirects it

    def end(*_):
        with contextlib.suppress(OSError):
            os.write(stderr, (_ERASE if os.isatty(stderr) else b"") + b"interrupted\n")
        os._exit(128 + signal.SIGINT)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(stderr)


@contextlib.contextmanager
def _quiet():
    """Drops the lines of `_CHATTER` from stderr while TensorFlow is imported and its runtime starts.

    Shows on a terminal that it starts, which takes seconds.
    """
    import tempfile  # here, because Ctrl-C prints a traceback until this file is imported, and tempfile imports much

    # Level 1 hides INFO. Runs with several processes use 3, because every process prints pages of C++ errors when one
    # of them dies. TensorFlow reads the level once, at its start.
    is_shared = os.environ.get("TF_CONFIG") or os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = level or ("3" if is_shared else "1")
    with contextlib.suppress(OSError):  # the disk of stderr may be full
        sys.stderr.flush()
    stderr = os.dup(2)
    erase = _ERASE if os.isatty(stderr) else b""
    if erase:
        os.write(stderr, b"starting TensorFlow ...")
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
            sys.modules["tensorflow"].config.list_physical_devices("GPU")  # starts the runtime, which prints, too
        finally:
            if level is None:
                del os.environ["TF_CPP_MIN_LOG_LEVEL"]  # a child process may need another level
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            with contextlib.suppress(OSError):
                os.write(2, erase)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines(keepends=True):
                with contextlib.suppress(OSError):
                    if not any(words in line for words in _CHATTER):
                        sys.stderr.write(line)


@contextlib.contextmanager
def _without_optional():
    """Hides scikit-learn and matplotlib from the import of Keras, which saves a third of its time and 85 MiB.

    `keras.wrappers` and `keras.visualization` then report a missing package. To use them, import Keras before mnist.
    """
    hidden = [name for name in ("sklearn", "matplotlib") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def _report_interrupt(kind, error, traceback, *, report=sys.excepthook):
    """Prints one line for Ctrl-C while modules are imported, and exits with 130, as `mnist.cli.run` does later."""
    modules, entry = [], traceback
    while entry:
        if entry.tb_frame.f_code.co_name == "<module>":
            modules.append(entry.tb_frame.f_globals.get("__package__") or "")
        entry = entry.tb_next
    is_of_user = len(modules) == 1 and not modules[0].startswith("mnist")  # without any, `python -m` has not begun
    if kind is not KeyboardInterrupt or is_of_user:
        return report(kind, error, traceback)
    with contextlib.suppress(OSError):
        sys.stderr.write("interrupted\n")
    sys.exit(130)


sys.excepthook = _report_interrupt
# Python has None for a stream that is closed at the start, and the next file that is opened would take its number.
for _number, _name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, _name) is None:
        _descriptor = os.open(os.devnull, os.O_RDWR)  # has the lowest free number, which is the number of the stream
        setattr(sys, _name, os.fdopen(_descriptor, "w" if _number else "r"))
if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":  # setdefault overrides keras.json
    with contextlib.suppress(OSError):
        sys.stderr.write(f"KERAS_BACKEND={os.environ['KERAS_BACKEND']} is ignored, because mnist needs tensorflow.\n")
    os.environ["KERAS_BACKEND"] = "tensorflow"
_CONTEXTS = {"tensorflow": _quiet, "keras": _without_optional}
sys.meta_path.insert(0, _Finder)
