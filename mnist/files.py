"""A run's folder: one process at a time, files that are whole or not there, errors in plain words."""

import contextlib
import errno
import os
import re
import socket
import warnings

from mnist import Error

import filelock
import tensorflow as tf


@contextlib.contextmanager
def lock(workdir):
    """Holds a folder for this process alone, made if need be. The lock dies with its owner."""
    path, owner = (os.path.join(workdir, name) for name in (".lock", ".owner"))
    try:
        os.makedirs(workdir, exist_ok=True)
        held = _acquire(path)
    except filelock.Timeout:
        name = "another process"
        with contextlib.suppress(OSError), open(owner) as file:
            name = file.read().strip() or name
        raise Error(f"{workdir} is in use by {name}.") from None
    except OSError as error:
        raise Error(f"cannot write to --workdir={workdir}: {error.strerror}.") from None
    with held:
        write_atomically(owner, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield


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
            with open(temporary, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise


def sync(path):
    """Waits until a file, or a folder's list of files, is on disk. Windows has no way to ask that for a folder."""
    if os.name == "nt" and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
