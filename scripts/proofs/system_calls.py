"""Runs a function in a process whose calls of the system about files stop until a judge lets them pass or fail.

Linux stops them by its filter of system calls (seccomp), in Python as in the C++ of TensorFlow.
"""

import atexit
import ctypes
import dataclasses
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import tempfile
import traceback

from mnist import Error

# The name of each call by its number on x86-64, and the kinds of its arguments. `at` is the descriptor of the folder
# to which the next path is relative. `vector` is a list of bytes.
_CALLS = {
    1: ("write", "descriptor bytes length"),
    2: ("open", "path flags"),
    3: ("close", "descriptor"),
    18: ("write", "descriptor bytes length offset"),
    20: ("write", "descriptor vector count"),
    74: ("fsync", "descriptor"),
    75: ("fsync", "descriptor"),
    76: ("truncate", "path length"),
    77: ("truncate", "descriptor length"),
    82: ("rename", "path path"),
    83: ("mkdir", "path"),
    84: ("unlink", "path"),
    85: ("open", "path"),
    86: ("link", "path path"),
    87: ("unlink", "path"),
    88: ("symlink", "target path"),
    257: ("open", "at path flags"),
    258: ("mkdir", "at path"),
    263: ("unlink", "at path"),
    264: ("rename", "at path at path"),
    265: ("link", "at path at path"),
    266: ("symlink", "target at path"),
    316: ("rename", "at path at path"),
}
NAMES = sorted({name for name, _ in _CALLS.values()})
_SECCOMP, _X86_64, _CURRENT_FOLDER = 317, 0xC000003E, 0xFFFFFF9C
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND


@dataclasses.dataclass
class Call:
    """A call that has stopped.

    Attributes:
      name: a string, one of `NAMES`.
      paths: a list of strings. The absolute paths of its files.
      flags: an int. The flags of `open`.
      data, offset: the bytes of `write`, and the position where it writes them.
      length: an int. The new size of `truncate`.
    """

    name: str
    paths: list
    flags: int = 0
    data: bytes = b""
    offset: int = 0
    length: int = 0


def run(function, judge, limit):
    """Calls a function in a forked process, as a program that ends after it.

    Args:
      function: a function without arguments. What it raises ends the process as it ends a program.
      judge: a function of a `Call`. It returns 0 to let the call pass, or the `errno` with which it fails.
      limit: a number. The seconds that the process may go without a call.

    Returns: the exit code, negative for a signal, and the text that the process wrote to stdout and stderr.
    Raises: `mnist.Error` if this system cannot stop calls.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Error("calls of the system can be stopped on Linux with an x86-64 processor alone.")
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as output, ours, theirs:
        process = os.fork()
        if not process:
            _become(function, output, theirs)
        _, listeners, *_ = socket.recv_fds(ours, 1, 1)
        if not listeners:
            os.waitpid(process, 0)
            raise Error("Linux refuses to stop calls of the system here (seccomp).")
        try:
            _answer(listeners[0], judge, limit, process)
        finally:
            os.close(listeners[0])
            status = os.waitpid(process, 0)[1]
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


def _become(function, output, channel):
    """Makes this process the program. Never returns."""
    code = 1
    try:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
        _stop_calls(channel)
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def _stop_calls(channel):
    """Makes all calls of `_CALLS` stop, from now on, and sends the descriptor that reports them."""
    instructions = [(0x20, 0, 0, 4), (0x15, 0, len(_CALLS) + 1, _X86_64), (0x20, 0, 0, 0)]  # the processor, the number
    instructions += [(0x15, len(_CALLS) - i, 0, number) for i, number in enumerate(_CALLS)]
    instructions += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)]  # lets a call pass, reports it
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(buffer)))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG, because no call ends after the judge has ended
    library.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, without which root alone may filter
    listener = library.syscall(_SECCOMP, 1, 8, program)  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER
    socket.send_fds(channel, [b" "], [listener] if listener >= 0 else [])


def _answer(listener, judge, limit, process):
    """Answers all calls until the last process with the filter has ended."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        events = poll.poll(limit * 1000)
        if not events:
            os.kill(process, signal.SIGKILL)  # it hangs
            return
        if not events[0][1] & select.POLLIN:
            return
        stopped = bytearray(80)
        try:
            fcntl.ioctl(listener, _RECEIVE, stopped)
            identity, thread, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", stopped)
            error = judge(_read(thread, number, arguments))
            fcntl.ioctl(listener, _SEND, struct.pack("QqiI", identity, 0, -error, not error))
        except (FileNotFoundError, ProcessLookupError):  # the thread has been killed
            continue


def _read(thread, number, arguments):
    """Returns the `Call` of a thread."""
    name, kinds = _CALLS[number]
    call, folder = Call(name, []), "cwd"
    memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY)
    try:
        for kind, value in zip(kinds.split(), arguments, strict=False):
            if kind == "at":
                folder = "cwd" if value & 0xFFFFFFFF == _CURRENT_FOLDER else f"fd/{value & 0xFFFFFFFF}"
            elif kind == "path":
                path = os.pread(memory, 4096, value).partition(b"\0")[0].decode(errors="surrogateescape")
                call.paths.append(os.path.normpath(os.path.join(_follow(f"/proc/{thread}/{folder}"), path)))
            elif kind == "descriptor":
                call.paths.append(_follow(f"/proc/{thread}/fd/{value & 0xFFFFFFFF}"))
                if name == "write":
                    call.offset = _offset(thread, value & 0xFFFFFFFF)
            elif kind == "bytes":
                call.data = os.pread(memory, arguments[2], value)
            elif kind == "vector":
                for start, length in struct.iter_unpack("QQ", os.pread(memory, 16 * arguments[2], value)):
                    call.data += os.pread(memory, length, start)
            elif kind in ("flags", "offset", "length"):
                setattr(call, kind, value)
    finally:
        os.close(memory)
    if number == 85:  # creat
        call.flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    return call


def _follow(link):
    try:
        return os.readlink(link)
    except OSError:  # the descriptor is not open
        return ""


def _offset(thread, descriptor):
    """Returns the position where a descriptor writes next."""
    try:
        with open(f"/proc/{thread}/fdinfo/{descriptor}") as file:
            found = dict(line.split(":", 1) for line in file)
        if int(found["flags"], 8) & os.O_APPEND:
            return os.stat(f"/proc/{thread}/fd/{descriptor}").st_size
    except OSError:
        return 0
    return int(found["pos"])
