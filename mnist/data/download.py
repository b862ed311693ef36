"""Downloads of MNIST and Fashion-MNIST into Keras' cache, with their digests checked."""

import contextlib
import os
import socket
import sys

from mnist import Error
from mnist.data import folders

STALL_SECONDS = 10
STORE = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# From https://github.com/zalandoresearch/fashion-mnist, in the order of `folders.IDX_FILES`.
FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)


def fetch(name):
    """Returns the `folders.Found` of `mnist` or `fashion_mnist` in Keras' cache. Downloads what is not there.

    Raises: `mnist.Error` if a download fails, or if nothing arrives for 10 seconds.
    """
    if name == "mnist":
        return folders.npz_file(_fetch("mnist.npz", "datasets", MNIST_SHA256))
    folder = os.path.join("datasets", "fashion-mnist")
    digests = zip(folders.IDX_FILES, FASHION_MD5, strict=True)
    paths = [_fetch(f"{file}.gz", folder, md5) for file, md5 in digests]
    return folders.idx_files(paths, paths[0])


def _fetch(filename, folder, digest):
    import keras  # here, because reading files needs no TensorFlow

    url, home, timeout = STORE + filename, os.environ.get("KERAS_HOME"), socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # get_file() has no argument for it
    try:
        with contextlib.nullcontext() if sys.stdout.isatty() else _without_bar():
            return keras.utils.get_file(filename, url, cache_subdir=folder, file_hash=digest, cache_dir=home)
    except Exception as error:
        raise Error(
            f"cannot download {url}: {' '.join(str(error).split())}. Give the files with "
            "--data_dir=FOLDER, or take --dataset=digits, which needs no network."
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


@contextlib.contextmanager
def _without_bar():
    """Stops Keras from printing, because stdout is a log or holds the JSON of a command."""
    import keras

    was_enabled = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if was_enabled:
            keras.config.enable_interactive_logging()
