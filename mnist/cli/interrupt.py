"""The signals that ask a run to stop between two inner loops. A second Ctrl-C ends it at once."""

import contextlib
import os
import signal
import socket
import threading

# Ctrl-C, `kill`, a closed terminal, and the warnings that Slurm, SGE and PBS send before they kill a job.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


class Interrupted(Exception):
    """A request to stop a run, which has saved everything that it had computed. `signum` is the signal, or None."""

    def __init__(self, message, signum=None):
        super().__init__(message)
        self.signum = signum


class CtrlC:
    """A context manager that catches the first Ctrl-C, for a notebook. `signum` is then SIGINT, else None.

    The second raises KeyboardInterrupt. It catches nothing outside of the main thread, or if the program has a handler.
    """

    signum = None

    def __enter__(self):
        is_main = threading.current_thread() is threading.main_thread()
        self._catches = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._catches:
            signal.signal(signal.SIGINT, self._take)
        return self

    def _take(self, signum, _):
        self.signum = signum
        signal.signal(signum, signal.default_int_handler)

    def __exit__(self, *_):
        if self._catches:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Interrupt:
    """A context manager that catches signals. `signum` is the first one caught, or None.

    A signal that the process ignores from its start stays ignored: SIGHUP under nohup, SIGINT in a background job.
    A thread reads the signals from a socket, because Python would run a handler only after the whole inner loop.
    """

    def __init__(self):
        self.signum = None

    def __enter__(self):
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno())
        handlers = {signum: signal.getsignal(signum) for name in _NAMES if (signum := getattr(signal, name, None))}
        # None is a handler from outside of Python, which __exit__ could not restore.
        self._old_handlers = {s: h for s, h in handlers.items() if h not in (signal.SIG_IGN, None)}
        for signum in self._old_handlers:
            signal.signal(signum, lambda *_: None)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _watch(self):
        while signums := self._reader.recv(16):
            for signum in signums:
                if signum not in self._old_handlers:
                    continue
                if self.signum is not None and signum == signal.SIGINT:
                    os._exit(128 + signum)
                if self.signum is None:
                    self.signum = signum
                    with contextlib.suppress(OSError):  # the disk of stderr may be full
                        os.write(2, b"\nStopping after this loop; Ctrl-C again ends at once.\n")
        self._reader.close()

    def __exit__(self, *_):
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._writer.close()  # ends the thread
