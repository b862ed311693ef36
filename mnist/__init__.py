"""A custom TensorFlow training loop for MNIST. `python -m mnist` lists its commands.

Importing the package is quick. It has TensorFlow, once something imports that, say only what matters, and
brings `Error`, a mistake that the user can mend.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
import tempfile

# What TensorFlow says at every start, on any machine without a GPU, whatever the log level: it says
# so before its logger knows of a level. Everything else that it says is passed on.
_CHATTER = (
    "All log messages before absl::InitializeLog()",
    "oneDNN custom operations are on",
    "cudart_stub.cc",
    "cuda_platform.cc",
    "cpu_feature_guard.cc",
    "To enable the following instructions",
)


class Error(Exception):
    """A mistake that the user can mend. Commands print it without a traceback and exit with its `status`."""

    status = 1


LOST = 75  # what a command exits with when another process of its run was lost: started again, it resumes


class _FirstImport(importlib.abc.MetaPathFinder):
    """Has the first import of a package, by any module, run while a context manager is entered."""

    def __init__(self, name, entered):
        self._name, self._entered = name, entered

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == self._name else None
        if spec:
            import_module = spec.loader.exec_module

            def exec_module(module):
                sys.meta_path.remove(self)  # not before: who asks for the spec alone imports nothing
                with self._entered():
                    import_module(module)

            spec.loader.exec_module = exec_module
        return spec


@contextlib.contextmanager
def _quiet():
    """While TensorFlow is imported, and its runtime started, stderr goes to a file, which is sifted at the end."""
    # Warnings and errors; of many processes not the pages that each has to say when one ends.
    is_shared = os.environ.get("TF_CONFIG") or os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = level or ("3" if is_shared else "1")  # read once, as TensorFlow starts
    with contextlib.suppress(OSError):  # it may be full
        sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
            sys.modules["tensorflow"].config.list_physical_devices("GPU")  # the second half of the chatter
        finally:
            if level is None:
                del os.environ["TF_CPP_MIN_LOG_LEVEL"]  # a process that this one starts may need another
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines(keepends=True):
                with contextlib.suppress(OSError):
                    if not any(words in line for words in _CHATTER):
                        sys.stderr.write(line)


@contextlib.contextmanager
def _alone():
    """While Keras is imported, it does not find what it would import for a few functions of its own.

    That takes a third of the time and 85 MiB. `keras.wrappers` and `keras.visualization` say then that it is missing;
    who needs them imports Keras before this package.
    """
    hidden = [name for name in ("sklearn", "matplotlib") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def _open_closed_streams():
    """Opens those of stdin, stdout and stderr that a process was started without, on nothing.

    Python has None for them, and the next file that is opened would get their number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # of the free numbers the lowest, which is the stream's own
            setattr(sys, name, os.fdopen(descriptor, "w" if number else "r"))


_open_closed_streams()
if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":  # a keras.json is overruled, too
    with contextlib.suppress(OSError):
        sys.stderr.write(f"KERAS_BACKEND={os.environ['KERAS_BACKEND']} is passed over: this is TensorFlow's loop.\n")
    os.environ["KERAS_BACKEND"] = "tensorflow"
for _name, _entered in (("tensorflow", _quiet), ("keras", _alone)):
    if _name not in sys.modules:
        sys.meta_path.insert(0, _FirstImport(_name, _entered))
