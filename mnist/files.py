"""A run's folder: one process at a time, files that are whole or not there, errors in plain words."""

import contextlib
import errno
import fcntl
import os
import re
import socket

from mnist import Error

import tensorflow as tf


@contextlib.contextmanager
def lock(workdir):
    """Holds a folder for this process alone, made if need be. The lock dies with its owner."""
    path = os.path.join(workdir, ".lock")
    try:
        os.makedirs(workdir, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115, closed below
    except OSError as error:
        raise Error(f"cannot write to --workdir={workdir}: {error.strerror}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            file.seek(0)
            raise Error(f"{workdir} is in use by {file.read().strip() or 'another process'}.") from None
        with write_errors(f"write to {workdir}"):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


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
    """Waits until a file, or a folder's list of files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
