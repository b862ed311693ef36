"""SIGINT and SIGTERM, heeded between two inner loops; a second SIGINT ends the process at once."""

import os
import signal
import socket
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """While entered, `signum` is the first of SIGINT and SIGTERM that came, None before that.

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
        self._old_handlers = [signal.signal(signum, lambda *_: None) for signum in _SIGNALS]
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _watch(self):
        while signums := self._reader.recv(16):
            for signum in signums:
                if signum not in _SIGNALS:
                    continue
                if self.signum is not None and signum == signal.SIGINT:
                    os._exit(128 + signum)
                if self.signum is None:
                    self.signum = signum
                    os.write(2, b"\nStopping after this loop; Ctrl-C again ends at once.\n")
        self._reader.close()

    def __exit__(self, *_):
        for signum, handler in zip(_SIGNALS, self._old_handlers, strict=True):
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._writer.close()  # ends the thread
