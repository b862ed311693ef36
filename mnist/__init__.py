"""A custom TensorFlow training loop for MNIST.

Importing the package imports TensorFlow without its start-up chatter, and brings the two names that
every command shares: `Error`, a mistake that the user can mend, and `run`, which starts a command.
"""

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


def _import_tensorflow():
    """Imports TensorFlow and starts its runtime; stderr meanwhile goes to a file and is sifted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings and errors
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")  # the second half of the chatter
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines(keepends=True):
                if not any(words in line for words in _CHATTER):
                    sys.stderr.write(line)


_import_tensorflow()


class Error(Exception):
    """A mistake that the user can mend. Commands print it without a traceback and exit with 1."""


def run(main):
    """Parses absl flags and runs `main()`, as `absl.app.run` does; exits with its return value.

    Stray arguments are refused unless `main` takes them (`main(arguments)` of a command that reads
    files). An `Error` is printed in its own words; any other exception keeps its traceback.
    """
    import tensorflow as tf
    from absl import app, flags, logging

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:  # importing TensorFlow raised it to INFO
            logging.set_verbosity(logging.WARNING)
        tf.get_logger().setLevel("WARNING")
        takes_arguments = main.__code__.co_argcount > 0
        try:
            if argv[1:] and not takes_arguments:
                raise Error(f"unexpected argument: {argv[1]!r} (flags are written --name=value).")
            return main(argv[1:]) if takes_arguments else main()
        except Error as error:
            sys.exit(f"error: {error}")
        except BrokenPipeError:  # whoever read the output has left, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141

    app.run(guarded)
