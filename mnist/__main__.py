"""Lists the commands: python -m mnist"""

import ast
import os
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent
COMMANDS = ("train", "evaluate", "predict", "export", "sweep", "compare", "launch_workers")


def describe(path):
    """Returns the first line of the docstring of a file, without the command at its end. Does not import the file."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].partition(": python")[0]


def main():
    ideas = sorted((FOLDER / "research").glob("[!_]*.py"))
    if len(sys.argv) > 1:
        from mnist.cli import close_names, did_you_mean  # here, because the list has to appear at once

        known = {name: f"python -m mnist.{name}" for name in COMMANDS}
        known |= {path.stem: f"python -m mnist.research.{path.stem}" for path in ideas}
        wanted = sys.argv[1].rpartition(".")[2]
        close = [wanted] if wanted in known else close_names(wanted, list(known))
        sys.exit(f"error: unexpected argument {sys.argv[1]!r}{did_you_mean([known[name] for name in close])}")
    lines = [
        "Commands, each with --help:\n",
        *(f"  python -m mnist.{name:<15} {describe(FOLDER / f'{name}.py')}" for name in COMMANDS),
        "\nTraining with an idea about the step, python -m mnist.research.NAME:\n",
        *(f"  {path.stem:<16} {describe(path)}" for path in ideas),
        "\nA clone also has proofs, benchmarks and recipes: see scripts/README.md.",
    ]
    try:
        print("\n".join(lines), flush=True)  # at once, because a reader such as `head` may leave early
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # also discards the buffer
        sys.exit(f"error: cannot write the output: {error.strerror}.")


if __name__ == "__main__":
    main()
