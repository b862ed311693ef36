"""Starts a training command as several processes of this machine that share one run.

    python scripts/launch_workers.py --workers=2 -- python -m mnist.train --slices=2 --workdir=runs/shared

Each process gets a TF_CONFIG with free ports. The first one, the chief, writes to this terminal, the others to a log
each. Ctrl-C and SIGTERM go to all: they save and end. Where one fails, the others end with it, by KILL if need be.
Exits with 0 if all did, else with the code of the first that failed; 128 + N is signal N.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time

from mnist import LOST, Error
from mnist.cli import run
from mnist.settings import Setting, local_path

_SECONDS = 3  # in which the others end by themselves when one has failed, and again after SIGTERM
_SAVE_SECONDS = 60  # for all to save when they are asked to end
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Launch:
    """How many processes, and what if one is lost."""

    workers = Setting(2, "Processes; --slices of the command must be a multiple of them.", low=1)
    restarts = Setting(0, "How often all are started again after one was lost, to resume the run.", low=0)
    min_workers = Setting(
        None,
        "With --restarts: resume on half as many workers after each loss, but on no fewer than this. Default: on as "
        "many as before.",
        kind=int,
        low=1,
    )
    logs = Setting(None, "Folder for the logs of all but the chief. Default: a temporary one.", kind=local_path)


class Workers:
    """The processes of one start, in a group each, so that a signal of the terminal reaches them once, through this.

    Args:
      command: what each of them runs, a list.
      logs: paths of files that their output is added to, one for each process; None: where this one's goes.
    """

    def __init__(self, command, logs):
        addresses = [f"localhost:{port}" for port in _free_ports(len(logs))]
        self.processes = []
        for i, path in enumerate(logs):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            with open(path, "a") if path else contextlib.nullcontext() as log:
                try:
                    process = subprocess.Popen(
                        command,
                        env=os.environ | {"TF_CONFIG": json.dumps(config)},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                    )
                except OSError as error:
                    self.end()
                    raise Error(f"cannot start {command[0]}: {error.strerror}.") from None
            self.processes.append(process)

    def send(self, signum):
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signum)

    def wait(self, seconds):
        """Returns: whether all have ended in that time."""
        limit = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes) and time.monotonic() < limit:
            time.sleep(0.05)
        return all(process.poll() is not None for process in self.processes)

    def end(self):
        """Ends all that are left: they are asked, and then made to."""
        if not self.wait(_SECONDS if self.processes else 0):
            self.send(signal.SIGTERM)
            if not self.wait(_SECONDS):
                self.send(signal.SIGKILL)
                self.wait(_SECONDS)

    def follow(self, asked):
        """Waits until all have ended or one has failed, and passes on the signals that come into the list `asked`.

        Returns: the first that failed, None if none did.
        """
        passed, limit = 0, None
        while True:
            for signum in asked[passed:]:
                self.send(signum)
                passed, limit = passed + 1, limit or time.monotonic() + _SAVE_SECONDS
            codes = [process.poll() for process in self.processes]
            failed = next((i for i, code in enumerate(codes) if code), None)
            if failed is not None or None not in codes:
                return failed
            if limit and time.monotonic() > limit:
                return codes.index(None)
            time.sleep(0.05)


def _free_ports(count):
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _die_with_parent():
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: this launcher may be killed itself


def _last_line(path):
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        return next((line.strip() for line in reversed(file.readlines()[-50:]) if line.strip()), "")
    return ""


def main(options, command):
    if not command:
        raise Error("name the command to start after --, as in -- python -m mnist.train --slices=2.")
    logs = options.logs or tempfile.mkdtemp(prefix="workers-")
    try:
        os.makedirs(logs, exist_ok=True)
    except OSError as error:
        raise Error(f"cannot write to --logs={options.logs}: {error.strerror}.") from None
    count, asked = options.workers, []
    for signum in _SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda signum, _: asked.append(signum))
    print(f"{shlex.join(command)} on {count} workers; logs: {logs}", flush=True)
    paths = [None, *(os.path.join(logs, f"worker_{i}.log") for i in range(1, count))]
    for restart in range(options.restarts + 1):
        workers = Workers(command, paths[:count])
        try:
            failed = workers.follow(asked)
        finally:
            workers.end()
        if failed is None:
            return 0
        code = workers.processes[failed].returncode
        code = 128 - code if code < 0 else code
        if asked:
            return code or 1
        reason = _last_line(paths[failed]) if failed else ""
        print(f"worker {failed} ended with {code}{f': {reason}' if reason else '.'}", file=sys.stderr, flush=True)
        lost = code > 128 or code == LOST
        fewer = count // 2 if options.min_workers else count
        if not lost or restart == options.restarts or fewer < (options.min_workers or 1):
            return code
        count = fewer
        print(
            f"restart {restart + 1} of {options.restarts}, on {count} worker{'s' * (count > 1)}",
            file=sys.stderr,
            flush=True,
        )
    return code


if __name__ == "__main__":
    run(main, Launch, arguments=True)
