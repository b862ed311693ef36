"""Downloads of MNIST and Fashion-MNIST into Keras' cache, with their digests checked."""

import os
import tempfile
import threading

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
    """Returns the `folders.Files` of `mnist` or `fashion_mnist` in Keras' cache. Downloads what is not there."""
    if name == "mnist":
        return folders.npz_files(_fetch("mnist.npz", "datasets", MNIST_SHA256))
    folder = os.path.join("datasets", "fashion-mnist")
    digests = zip(folders.IDX_FILES, FASHION_MD5, strict=True)
    return folders.Files(*(folders.Array(_fetch(f"{file}.gz", folder, md5)) for file, md5 in digests))


def _fetch(filename, folder, digest):
    """Returns the path of one file. Raises `mnist.Error` if the download fails or stalls.

    The download runs in its own thread, because no socket time-out limits a silent name server or proxy. The thread
    of a stalled download ends with the process.
    """
    url, outcome = STORE + filename, {}
    # Keras makes the first folder if it can, and uses the second if it cannot write to the first.
    home = os.path.expanduser(os.environ.get("KERAS_HOME", os.path.join("~", ".keras")))
    if not os.access(home, os.W_OK):
        home = os.path.join(tempfile.gettempdir(), ".keras")
    folder = os.path.join(home, folder)
    target = os.path.join(folder, filename)

    def fetch():
        try:
            import keras  # here, because reading files needs no TensorFlow

            outcome["path"] = keras.utils.get_file(filename, url, cache_subdir=folder, file_hash=digest)
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    size = None
    while thread.is_alive():
        thread.join(STALL_SECONDS)
        last, size = size, os.path.getsize(target) if os.path.exists(target) else 0
        if thread.is_alive() and size == (last or 0):
            outcome["error"] = f"nothing arrived for {STALL_SECONDS} s"
            break
    if "error" in outcome:
        raise Error(
            f"cannot download {url}: {' '.join(str(outcome['error']).split())}. Give the files with "
            "--data_dir=FOLDER, or take --dataset=digits, which needs no network."
        )
    return outcome["path"]
