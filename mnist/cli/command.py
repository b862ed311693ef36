"""How a command starts: flags from settings, --help in groups, a user's mistakes in a line or two."""

import contextlib
import difflib
import errno
import gc
import itertools
import logging as std_logging
import os
import re
import shutil
import signal
import sys
import textwrap

from mnist import Error
from mnist.settings import defined_flags, read_flags

from absl import app, flags, logging

_GROUPS = ("data", "length", "optimizer", "speed", "output")  # in the order of --help


def run(main, *classes, arguments=False):
    """Makes flags of the settings of `classes`, parses the command line and runs `main`; exits with what it returns.

    `main` is called with a namespace of all settings, if there are classes, and with the list of other
    arguments if `arguments` is true; if not, they are refused. An `mnist.Error` is printed in its own words; Ctrl-C
    exits with 130, any other exception keeps its traceback.
    """

    def guarded(argv):
        gc.freeze()  # the modules of TensorFlow, which nobody will free: to look through them all takes 0.2 s each time
        if not flags.FLAGS["verbosity"].present:  # importing TensorFlow raised it to INFO
            logging.set_verbosity(logging.WARNING)
        std_logging.getLogger("tensorflow").setLevel("WARNING")
        try:
            os.getcwd()
        except FileNotFoundError:
            raise Error("the current folder is no longer there: go to another.") from None
        if argv[1:] and not arguments:
            raise Error(f"unexpected argument: {argv[1]!r} (flags are written --name=value).")
        status = main(*([read_flags(*classes)] if classes else []), *([argv[1:]] if arguments else []))
        sys.stdout.flush()  # that it cannot be written is said, not left to the interpreter's end
        return status

    try:
        if hasattr(sys.stdout, "reconfigure"):  # a file's name may have what the terminal's encoding has not
            sys.stdout.reconfigure(errors="backslashreplace")
        with defined_flags(*classes):
            app.run(guarded, flags_parser=_parse)
    except Error as error:
        if error.status == 1:
            sys.exit(f"error: {error}")  # which Python prints
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        # Of the output: the reader has left, as `| head` does, or a disk is full. Files are named.
        if error.filename or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer, too
        sys.exit(141 if error.errno == errno.EPIPE else f"error: cannot write the output: {error.strerror}.")


def project_flags():
    """All flags of this command by name, but aliases and those that absl and TensorFlow define for themselves.

    Each has a serializer: one of the user's without has `str`.
    """
    groups = flags.FLAGS.flags_by_module_dict().items()
    own = [flag for module, group in groups if not module.startswith(("absl.", "tensorflow.")) for flag in group]
    own = [flag for flag in own if not hasattr(flag, "imported") and not is_alias(flag)]
    for flag in own:
        flag.serializer = flag.serializer or flags.ArgumentSerializer()
    return {flag.name: flag for flag in own}


def is_alias(flag):
    """Whether a flag is another name of a flag: absl makes their class within `DEFINE_alias`."""
    return type(flag).__qualname__.startswith(f"{flags.DEFINE_alias.__qualname__}.")


def _parse(argv):
    own = itertools.takewhile(lambda argument: argument != "--", argv[1:])  # the others are passed on
    flagged = [argument.lstrip("-") for argument in own if argument.startswith("-")]
    if wanted := [name for name in flagged if name in ("help", "h", "?", "helpshort", "helpfull")]:
        print(_help(wanted[0]), flush=True)
        sys.exit(0)
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise Error(f"there is no flag --{error.flagname}{_suggest(error.flagname)} --help lists all.") from None
    except (flags.Error, ValueError) as error:
        error = re.sub(r"\('Non-boolean .*\)", "expected true or false", str(error))
        raise Error(f"{error.removeprefix('flag ').rstrip('.')}.") from None


def _suggest(name):
    """Names of flags that may be meant: by initials (lr), as a part (patience), or by a slip (bach_size)."""
    known = list(project_flags())
    likely = [flag for flag in known if "".join(word[0] for word in flag.split("_")) == name]
    if len(name) > 2:
        likely += difflib.get_close_matches(name, known)
        likely += [flag for flag in known if name in flag or flag in name]
    names = [f"--{flag}" for flag in dict.fromkeys(likely)][:3]
    return f": did you mean {' or '.join(names)}?" if names else "."


def _help(wanted):
    """The text of --help; with helpshort, of flags that are of no other command; with helpfull, of absl's too."""
    groups = {}
    for name, flag in project_flags().items():
        setting = getattr(flag, "setting", None)
        groups.setdefault(setting.group if setting else "flags of this file", []).append((name, flag))
    own = [group for group in groups if group not in _GROUPS]
    shown = own if wanted == "helpshort" and own else [*own, *(group for group in _GROUPS if group in groups)]
    width = max(20, min(shutil.get_terminal_size().columns, 120))
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), ""]
    for group in shown:
        lines.append(f"{group}:")
        for name, flag in groups[group]:
            default = f"--{name}={str(flag.value).lower()}" if flag.boolean else flag.serialize() or f"--{name}"
            setting = getattr(flag, "setting", None)
            expected = f" ({setting.expected()})" if setting and setting.kind not in (bool, str) else ""
            text = textwrap.fill(f"{flag.help}{expected}", width - 6)
            lines += [f"  {default}", textwrap.indent(text, "      ")]
        lines.append("")
    lines.append("--flagfile=FILE reads flags from a file. --helpfull lists the flags of absl, too.")
    if wanted == "helpfull":
        lines.append(flags.FLAGS.get_help())
    return "\n".join(lines)
