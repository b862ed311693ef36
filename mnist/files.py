"""The folder of a run: locked for one process, with files that survive a power failure, and plain errors."""

import concurrent.futures
import contextlib
import errno
import math
import os
import re
import socket
import sys
import tempfile
import warnings

from mnist import Error

import filelock

_NOT_SUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def lock(workdir):
    """Locks a folder for this process, and makes it if needed. The lock ends with the process.

    Raises: `mnist.Error` if another process has the lock, or if the folder cannot be written to.
    """
    path, owner = (os.path.join(workdir, name) for name in (".lock", ".owner"))
    with contextlib.ExitStack() as held:
        try:
            make_folder(workdir)
            _lock_folder(workdir, held)
            held.enter_context(_lock_file(path))
        except (filelock.Timeout, BlockingIOError):
            name = "another process"
            with contextlib.suppress(OSError), open(owner) as file:
                name = file.read().strip() or name
            raise Error(f"{workdir} is in use by {name}.") from None
        except OSError as error:
            raise Error(f"cannot write to --workdir={workdir}: {error.strerror}.") from None
        write_atomically(owner, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield


def _lock_folder(folder, held):
    """Locks the folder itself where the system can, because a user may delete `.lock`."""
    if os.name == "nt":  # where nobody can delete an open file
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError):  # another process has the lock, else `.lock` must suffice
            raise


def _lock_file(path):
    """Locks a file without waiting. On a network file system without locks, the existence of a file is the lock."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # filelock warns of its own fallback for ENOSYS
        try:
            return filelock.FileLock(path).acquire(blocking=False)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            return filelock.SoftFileLock(f"{path}.soft").acquire(blocking=False)


@contextlib.contextmanager
def write_errors(what):
    """Turns a failure to write (disk full, read-only) into a `mnist.Error`: cannot `what`, and the reason."""
    try:
        yield
    except Exception as error:
        tf = sys.modules.get("tensorflow")  # not imported here, because a sweep starts without it
        if not isinstance(error, (OSError, tf.errors.OpError) if tf else OSError):
            raise
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
        reason = re.sub(r"\{\{.*?\}\} | \[Op:.*\]", "", reason)  # TensorFlow's names of nodes
        raise Error(f"cannot {what}: {reason.splitlines()[0]}") from None


def write_atomically(path, text):
    """Writes a small text file, which is on disk when this returns. A power failure leaves it whole or as before."""
    with write_errors(f"write {path}"):
        temporary = f"{path}.tmp"
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
            replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise


def replace(source, path):
    """Renames a file to a path in the same folder, in place of an older one. It is on disk when this returns."""
    sync(source)
    os.replace(source, path)
    sync(os.path.dirname(os.path.abspath(path)))


def append(path, text):
    """Appends to a text file. The text is on disk when this returns."""
    with write_errors(f"write {path}"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
        sync(path)


def remove(path):
    """Deletes a file if it exists."""
    with write_errors(f"delete {path}"), contextlib.suppress(FileNotFoundError):
        os.remove(path)


def make_folder(path):
    """Makes a folder and those around it, unless they exist. It is on disk when this returns."""
    path = os.path.abspath(path)
    around = os.path.dirname(path)
    if not os.path.isdir(around):
        make_folder(around)
    os.makedirs(path, exist_ok=True)
    sync(around)


def sync(*paths):
    """Waits until files, or the lists of files of folders, are on disk. Not every system can do this for a folder."""
    with concurrent.futures.ThreadPoolExecutor(len(paths) or 1) as pool:  # together they take the time of one
        list(pool.map(_sync, paths))


def _sync(path):
    is_folder = os.path.isdir(path)
    if os.name == "nt" and is_folder:
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # CIFS and some of FUSE cannot sync folders, and a user may not list each folder
        if not is_folder or error.errno not in (errno.EINVAL, errno.EACCES, *_NOT_SUPPORTED):
            raise


def is_pattern(path):
    """Returns whether TensorFlow's checkpoint reader would use the absolute path of a file as a glob pattern."""
    return os.name != "nt" and bool(re.search(r"[\[\]*?\\]", os.path.abspath(path)))


@contextlib.contextmanager
def without_pattern(folder):
    """Yields a path of a folder for TensorFlow's checkpoint reader, by a link if the path itself is a pattern."""
    if not is_pattern(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        link = os.path.join(temporary, "folder")
        os.symlink(os.path.abspath(folder), link)
        yield link


def without_nan(numbers):
    """Returns a dict with None in place of every float that is not finite, because JSON cannot represent these."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
