"""The lock of a run's folder, on file systems with locks and without."""

import errno
import os
import subprocess
import time

from mnist import Error, files

import pytest

HOLD = """
import sys
from mnist import files
with files.lock(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""


def is_held(folder):
    try:
        with files.lock(folder):
            return False
    except Error:
        return True


@pytest.mark.parametrize("code", [None, errno.ENOSYS, errno.ENOTSUP])
def test_a_folder_is_held_once_and_free_again_after(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    if code:  # as on a network file system without locks
        monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        with files.lock(str(tmp_path)):
            with pytest.raises(Error, match=f"in use by process {os.getpid()} on "), files.lock(str(tmp_path)):
                pass
            assert is_held(str(tmp_path))


def test_the_lock_ends_with_its_process(python, tmp_path):
    (tmp_path / "hold.py").write_text(HOLD)
    command = [python, str(tmp_path / "hold.py"), str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(Error, match=r"in use by process \d+ on "), files.lock(str(tmp_path / "run")):
        pass
    process.kill()
    process.communicate()
    deadline = time.time() + 10
    while is_held(str(tmp_path / "run")) and time.time() < deadline:
        time.sleep(0.05)
    assert not is_held(str(tmp_path / "run"))
