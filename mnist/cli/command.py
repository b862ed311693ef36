"""The start of a command: flags from settings, --help in groups, short messages for a user's mistakes."""

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
from mnist.cli.progress import discard_stdout
from mnist.cli.setting_flags import defined_flags, read_flags
from mnist.settings import local_path

from absl import app, flags, logging

VALID = "The flags are valid."  # the output of --only_check_args, by which a sweep recognizes a training command
_GROUPS = ("data", "length", "optimizer", "speed", "output")  # the order of --help


def run(main, *classes, arguments=False):
    """Defines the settings of `classes` as flags, parses the command line, calls `main` and exits with its result.

    Prints an `mnist.Error` without a traceback. Ctrl-C exits with 130. Any other exception keeps its traceback.

    Args:
      main: a function of a namespace of the settings, if there are classes, and a list of arguments, if there are any.
      arguments: bool. Whether the command accepts arguments that are not flags.
    """

    def guarded(argv):
        gc.freeze()  # each full collection would look through all modules of TensorFlow for 0.2 s
        if not flags.FLAGS["verbosity"].present:  # absl set it to INFO
            logging.set_verbosity(logging.WARNING)
        std_logging.getLogger("tensorflow").setLevel("WARNING")
        logging.get_absl_handler().python_handler.setFormatter(std_logging.Formatter("warning: %(message)s"))
        try:
            os.getcwd()
        except FileNotFoundError:
            raise Error("the current folder no longer exists: change to another.") from None
        if argv[1:] and not arguments:
            raise Error(f"unexpected argument: {argv[1]!r} (flags are written --name=value).")
        status = main(*([read_flags(*classes)] if classes else []), *([argv[1:]] if arguments else []))
        sys.stdout.flush()  # raises here if stdout fails, not at the end of the interpreter
        return status

    try:
        if hasattr(sys.stdout, "reconfigure"):  # the encoding of the terminal may lack a character of a file name
            sys.stdout.reconfigure(errors="backslashreplace")
        with defined_flags(*classes):
            app.run(guarded, flags_parser=_parse)
    except Error as error:
        if error.status == 1:
            sys.exit(f"error: {error}")  # Python prints the text
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        # An error of stdout has no file name: the reader closed it, as `| head` does, or a disk is full.
        if error.filename or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        discard_stdout()
        sys.exit(141 if error.errno == errno.EPIPE else f"error: cannot write the output: {error.strerror}.")


def project_flags():
    """Returns the flags of this command by name, without aliases and the flags of absl and TensorFlow.

    A user's flag without a serializer gets one that uses `str`.
    """
    groups = flags.FLAGS.flags_by_module_dict().items()
    own = [flag for module, group in groups if not module.startswith(("absl.", "tensorflow.")) for flag in group]
    # absl defines the class of an alias inside of DEFINE_alias.
    is_alias = f"{flags.DEFINE_alias.__qualname__}."
    own = [f for f in own if not hasattr(f, "imported") and not type(f).__qualname__.startswith(is_alias)]
    for flag in own:
        flag.serializer = flag.serializer or flags.ArgumentSerializer()
    return {flag.name: flag for flag in own}


def _parse(argv):
    own = itertools.takewhile(lambda argument: argument != "--", argv[1:])
    flagged = [argument.lstrip("-") for argument in own if argument.startswith("-")]
    if wanted := [name for name in flagged if name in ("help", "h", "?", "helpshort", "helpfull")]:
        print(_help(wanted[0]), flush=True)
        sys.exit(0)
    try:
        lines, typed = _split(argv[1:])
        _, *stray = flags.FLAGS([argv[0], *lines])
        # Each flag that is typed replaces what a file holds, and has one value.
        singles = project_flags().values()
        for flag in singles:
            flag.present, flag.allow_overwrite = 0, False
        try:
            argv = [*flags.FLAGS([argv[0], *typed]), *stray]
        finally:
            for flag in singles:
                flag.allow_overwrite = True
        if flags.FLAGS["only_check_args"].value:
            print(VALID)
        return argv
    except flags.UnrecognizedFlagError as error:
        close = [f"--{name}" for name in close_names(error.flagname, list(project_flags()))]
        raise Error(f"there is no flag --{error.flagname}{did_you_mean(close)} --help lists all.") from None
    except (flags.Error, ValueError) as error:
        error = re.sub(r"\('Non-boolean .*\)", "expected true or false", str(error))
        error = re.sub("already defined as (.*)", r"the flag is given twice, also as \1", error, flags=re.DOTALL)
        raise Error(f"{error.removeprefix('flag ').rstrip('.')}.") from None


def _split(arguments, inside=()):
    """Splits arguments. Returns: the flags in the files of --flagfile, in their order, and all other arguments.

    Args:
      inside: a tuple of paths. The flag files that the arguments come from.
    """
    lines, others, rest = [], [], iter(arguments)
    for argument in rest:
        if argument == "--":
            others += [argument, *rest]
        elif match := re.fullmatch("--?flagfile(=.*)?", argument):
            lines += _read_flag_file(match[1][1:] if match[1] else next(rest, ""), inside)
        else:
            others.append(argument)
    return lines, others


def _read_flag_file(path, inside):
    """Returns the flags in a file. They follow the flags of files that it names, because a later flag wins."""
    if not path:
        raise Error("--flagfile is empty: name a file.")
    path, text = local_path(path), ""
    if path in inside:
        raise Error(f"--flagfile={path} reads itself.")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "it is not a text file")
        raise Error(f"cannot read --flagfile={path}: {reason}.") from None
    lines = [re.sub(r"(^//|(^|\s)#).*", "", line).strip() for line in text.splitlines()]
    nested, own = _split([line for line in lines if line], (*inside, path))
    return [*nested, *own]


def close_names(name, known):
    """Returns up to three known names with these initials (lr), this part (patience) or a like spelling (bach_size)."""
    likely = [other for other in known if "".join(word[:1] for word in other.split("_")) == name]
    if len(name) > 2:
        likely += difflib.get_close_matches(name, known)
        likely += [other for other in known if name in other or other in name]
    return list(dict.fromkeys(likely))[:3]


def did_you_mean(names):
    """Returns the end of a message, a question with names. Without names it is a full stop."""
    return f": did you mean {' or '.join(names)}?" if names else "."


def _help(wanted):
    """Returns the text of --help, without shared flags for "helpshort", with the flags of absl for "helpfull"."""
    groups = {}
    for name, flag in project_flags().items():
        setting = getattr(flag, "setting", None)
        groups.setdefault(setting.group if setting else "flags of this file", []).append((name, flag, setting))
    own = [group for group in groups if group not in _GROUPS]
    shown = own if wanted == "helpshort" and own else [*own, *(group for group in _GROUPS if group in groups)]
    width = max(20, min(shutil.get_terminal_size().columns, 120))
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), ""]
    for group in shown:
        lines.append(f"{group}:")
        for name, flag, setting in groups[group]:
            default = f"--{name}={str(flag.value).lower()}" if flag.boolean else flag.serialize() or f"--{name}"
            expected = f" ({setting.expected()})" if setting and setting.kind not in (bool, str) else ""
            text = textwrap.fill(f"{flag.help}{expected}", width - 6)
            lines += [f"  {default}", textwrap.indent(text, "      ")]
        lines.append("")
    lines.append("--flagfile=FILE reads flags from a file. --helpfull lists the flags of absl, too.")
    if wanted == "helpfull":
        lines.append(flags.FLAGS.get_help())
    return "\n".join(lines)
