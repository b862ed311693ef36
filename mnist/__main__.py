"""Lists the commands: python -m mnist"""

import ast
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent


def describe(path):
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main():
    if len(sys.argv) > 1:
        sys.exit(f"error: unexpected argument: {sys.argv[1]!r} (a command is started as python -m mnist.train).")
    print("Commands, each with --help:\n")
    for name in ("train", "evaluate", "predict", "export"):
        print(f"  python -m mnist.{name:<10} {describe(FOLDER / f'{name}.py').partition(': python')[0]}")
    print("\nTraining with an idea about the step, python -m mnist.research.NAME:\n")
    for path in sorted((FOLDER / "research").glob("[!_]*.py")):
        print(f"  {path.stem:<16} {describe(path).partition(': python')[0]}")
    print("\nFrom a clone, also: python scripts/NAME.py (see scripts/README.md).")


if __name__ == "__main__":
    main()
