"""A run's folder: one process at a time, files that are whole or not there, errors in plain words."""

import contextlib
import errno
import math
import os
import re
import socket
import tempfile
import warnings

from mnist import Error

import filelock
import tensorflow as tf


@contextlib.contextmanager
def lock(workdir):
    """Holds a folder for this process alone, made if need be. The lock dies with its owner."""
    path, owner = (os.path.join(workdir, name) for name in (".lock", ".owner"))
    with contextlib.ExitStack() as held:
        try:
            os.makedirs(workdir, exist_ok=True)
            _lock_folder(workdir, held)
            held.enter_context(_acquire(path))
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
    """Locks the folder itself where the system can: `.lock` may be deleted, and another made in its place.

    Raises: BlockingIOError if another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where a file that is open cannot be deleted
        return
    descriptor = os.open(folder, os.O_RDONLY)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a network file system: `.lock` has to do
        pass


def _acquire(path):
    """Locks a file at once or not at all. Some network file systems have no locks: there, the file itself is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # filelock's own fallback for ENOSYS
        try:
            return filelock.FileLock(path).acquire(blocking=False)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            return filelock.SoftFileLock(f"{path}.soft").acquire(blocking=False)


@contextlib.contextmanager
def write_errors(what):
    """Turns failures to write (disk full, read-only) into an `Error` that says what was tried."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
        reason = re.sub(r"\{\{.*?\}\} | \[Op:.*\]", "", reason)  # TensorFlow's names of its nodes
        raise Error(f"cannot {what}: {reason.splitlines()[0]}") from None


def write_atomically(path, text):
    """Writes a small text file that is there whole or not at all, whenever the power goes."""
    with write_errors(f"write {path}"):
        temporary = f"{path}.tmp"
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise


def sync(path):
    """Waits until a file, or a folder's list of files, is on disk, as far as the system can for a folder."""
    folder = os.path.isdir(path)
    if os.name == "nt" and folder:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # CIFS and some of FUSE
        if not folder or error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def is_pattern(path):
    """Whether TensorFlow's checkpoint reader takes files at a path, made absolute, for a pattern."""
    return os.name != "nt" and bool(re.search(r"[\[\]*?\\]", os.path.abspath(path)))


@contextlib.contextmanager
def without_pattern(folder):
    """Gives a folder a path that TensorFlow's checkpoint reader does not take for a pattern, by a link.

    It matches the path of a checkpoint: one with `[1]` or a backslash in it names no file.
    """
    if not is_pattern(folder):
        yield folder
        return
    if os.path.isdir("/proc/self/fd"):  # of Linux; the temporary folder may be such a pattern itself
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory() as temporary:
        link = os.path.join(temporary, "folder")
        os.symlink(os.path.abspath(folder), link)
        yield link


def without_nan(numbers):
    """A dict with None for what is not finite: JSON has no word for NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
