"""Lists the commands: python -m mnist"""

import ast
import os
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent


def describe(path):
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main():
    if len(sys.argv) > 1:
        sys.exit(f"error: unexpected argument: {sys.argv[1]!r} (a command is started as python -m mnist.train).")
    commands = [FOLDER / f"{name}.py" for name in ("train", "evaluate", "predict", "export")]
    ideas = sorted((FOLDER / "research").glob("[!_]*.py"))
    lines = [
        "Commands, each with --help:\n",
        *(f"  python -m mnist.{path.stem:<10} {describe(path).partition(': python')[0]}" for path in commands),
        "\nTraining with an idea about the step, python -m mnist.research.NAME:\n",
        *(f"  {path.stem:<16} {describe(path).partition(': python')[0]}" for path in ideas),
        "\nFrom a clone, also: python scripts/NAME.py (see scripts/README.md).",
    ]
    try:
        print("\n".join(lines), flush=True)  # at once: a reader as `head` may leave after a few
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer, too
        sys.exit(f"error: cannot write the output: {error.strerror}.")


if __name__ == "__main__":
    main()
