"""Signals that ask a run to end, heeded between two inner loops; a second SIGINT ends the process at once."""

import contextlib
import os
import signal
import socket
import threading

# Ctrl-C, `kill`, a terminal that closes, and the warnings of schedulers (Slurm, SGE, PBS) before they kill.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


class Interrupt:
    """While entered, `signum` is the first of these signals that came, None before that.

    One that the process was started to ignore, as nohup does with SIGHUP and a shell with a background job's SIGINT,
    stays ignored.

    Python runs a signal's handler only between two of its own instructions, and the inner loop is
    none of them: a thread reads the signals' numbers from a socket (Windows takes no pipe), so that a
    second Ctrl-C ends the process whatever the main thread is doing.
    """

    def __init__(self):
        self.signum = None

    def __enter__(self):
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno())
        handlers = {signum: signal.getsignal(signum) for name in _NAMES if (signum := getattr(signal, name, None))}
        # None: a handler that is not Python's, and could not be given back.
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
                    with contextlib.suppress(OSError):  # stderr may be full
                        os.write(2, b"\nStopping after this loop; Ctrl-C again ends at once.\n")
        self._reader.close()

    def __exit__(self, *_):
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._writer.close()  # ends the thread
