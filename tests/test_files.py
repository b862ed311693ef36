"""A run's folder: one process at a time, on file systems with locks and without."""

import errno
import os
import subprocess
import sys

from mnist import Error, files

import pytest

HOLD = (
    "import sys\nfrom mnist import files\nwith files.lock(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()\n"
)


def no_locks(code):
    """What `fcntl.flock` does where a network file system has no locks."""

    def flock(*_):
        raise OSError(code, os.strerror(code))

    return flock


@pytest.mark.parametrize("code", [None, errno.ENOSYS, errno.ENOTSUP])
def test_a_folder_is_held_once_and_free_again_after(tmp_path, monkeypatch, code):
    if code:
        monkeypatch.setattr("fcntl.flock", no_locks(code))
    for _ in range(2):
        with files.lock(str(tmp_path)):
            with pytest.raises(Error, match=f"in use by process {os.getpid()} on "), files.lock(str(tmp_path)):
                pass
            with pytest.raises(Error, match="in use"), files.lock(str(tmp_path)):
                pass


@pytest.mark.parametrize(
    "masked", ["", "import fcntl, errno\ndef flock(*_):\n    raise OSError(errno.ENOTSUP, '')\nfcntl.flock = flock\n"]
)
def test_the_lock_dies_with_its_owner(tmp_path, masked, monkeypatch):
    command = [sys.executable, "-c", masked + HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    if masked:
        monkeypatch.setattr("fcntl.flock", no_locks(errno.ENOTSUP))
    with pytest.raises(Error, match=f"in use by process {process.pid} on "), files.lock(str(tmp_path)):
        pass
    process.kill()
    process.communicate()
    with files.lock(str(tmp_path)):
        pass
