"""Starts a training command as several processes of this machine that share one run.

    python -m mnist.launch_workers --workers=2 -- python -m mnist.train --slices=2 --workdir=runs/shared

Each process gets a TF_CONFIG with free ports. The first, the chief, writes to this terminal, the others to log files.
Ctrl-C and SIGTERM reach all processes, which save and end. If one process fails, the launcher ends the others.
Exits with 0 if all processes did, else with the code of the first that failed (128 + N after signal N).
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

_SECONDS = 3  # for the other workers to end by themselves after a failure, and again after SIGTERM
_SAVE_SECONDS = 60  # for all workers to save after a signal
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Launch:
    """The flags of this command."""

    workers = Setting(2, "Number of processes. It must divide --slices of the command.", low=1)
    restarts = Setting(0, "How often to start all processes again, to resume the run, after one was lost.", low=0)
    min_workers = Setting(None, "Halve the workers at each restart, down to this. Default: all again.", kind=int, low=1)
    logs = Setting(None, "Folder for the logs of all workers but the chief. Default: a temporary one.", kind=local_path)


class Workers:
    """The processes of one start. Each has its own process group, so that Ctrl-C reaches it once, through `send`.

    Args:
      command: a list of strings. The command of every process.
      logs: a list of paths, one for each process. The file that its output is appended to. None: this terminal.
    """

    def __init__(self, command, logs):
        addresses = [f"localhost:{port}" for port in free_ports(len(logs))]
        options = {"stdin": subprocess.DEVNULL, "start_new_session": True}
        options["preexec_fn"] = _die_with_parent if sys.platform == "linux" else None
        self.processes = []
        for i, path in enumerate(logs):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            environment = os.environ | {"TF_CONFIG": json.dumps(config)}
            with open(path, "a") if path else contextlib.nullcontext() as log:
                try:
                    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, **options)
                except OSError as error:
                    self.end()
                    raise Error(f"cannot start {command[0]}: {error.strerror}.") from None
            self.processes.append(process)

    def send(self, signum):
        """Sends a signal to all processes that have not ended."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signum)

    def wait(self, seconds):
        """Waits at most `seconds`. Returns: whether all processes have ended."""
        limit = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes) and time.monotonic() < limit:
            time.sleep(0.05)
        return all(process.poll() is not None for process in self.processes)

    def end(self):
        """Waits a few seconds for the processes, then sends SIGTERM, then SIGKILL."""
        for signum in (None, signal.SIGTERM, signal.SIGKILL):
            if signum:
                self.send(signum)
            if self.wait(_SECONDS if self.processes else 0):
                return

    def follow(self, signums):
        """Waits until all processes have ended or one has failed. Sends on the signals that are added to `signums`.

        Returns: the index of the first process that failed, None if all have ended with 0.
        """
        sent, limit = 0, None
        while True:
            for signum in signums[sent:]:
                self.send(signum)
                sent, limit = sent + 1, limit or time.monotonic() + _SAVE_SECONDS
            codes = [process.poll() for process in self.processes]
            failed = next((i for i, code in enumerate(codes) if code), None)
            if failed is not None or None not in codes:
                return failed
            if limit and time.monotonic() > limit:
                return codes.index(None)
            time.sleep(0.05)


def free_ports(count):
    """Returns the numbers of ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _die_with_parent():
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, because the launcher itself may be killed


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
        raise Error(f"cannot write to --logs={logs}: {error.strerror}.") from None
    count, signums = options.workers, []
    for signum in _SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda signum, _: signums.append(signum))
    print(f"{shlex.join(command)} on {count} workers; logs: {logs}", flush=True)
    paths = [None, *(os.path.join(logs, f"worker_{i}.log") for i in range(1, count))]
    for restart in range(1, options.restarts + 2):
        workers = Workers(command, paths[:count])
        try:
            failed = workers.follow(signums)
        finally:
            workers.end()
        if failed is None:
            return 0
        code = workers.processes[failed].returncode
        code = 128 - code if code < 0 else code
        if signums:
            return code or 1
        reason = _last_line(paths[failed]) if failed else ""
        print(f"worker {failed} ended with {code}{f': {reason}' if reason else '.'}", file=sys.stderr, flush=True)
        is_lost = code > 128 or code == LOST
        if not is_lost or restart > options.restarts:
            return code
        if options.min_workers and count // 2 >= options.min_workers:
            count //= 2
        text = f"restart {restart} of {options.restarts}, on {count} worker{'s' * (count > 1)}"
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main, Launch, arguments=True)
