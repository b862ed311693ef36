"""The README's commands and examples, as a reader would paste them."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_file_and_module_that_is_named_exists():
    for path in re.findall(r"\b(?:scripts|mnist|tests)/[\w/]+\.\w+", README):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m (mnist[\w.]*\w)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_example_step_runs_when_pasted(tmp_path):
    example = re.search(r"```python\n# my_idea\.py\n(.*?)```", README, re.DOTALL)[1]
    assert len(example.splitlines()) <= 15
    (tmp_path / "my_idea.py").write_text(example)
    command = [sys.executable, "my_idea.py", "--dataset=digits", "--max_steps=5", "--workdir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "# python my_idea.py" in (tmp_path / "run" / "flags.txt").read_text()
    events = b"".join(path.read_bytes() for path in (tmp_path / "run" / "train").iterdir())
    assert b"batch_gradient_norm" in events


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="scripts/test.sh makes .venv; run it once")
def test_train_sh_runs_from_any_folder(tmp_path):
    command = [str(ROOT / "scripts" / "train.sh"), "--dataset=digits", "--dry_run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stderr  # the second time, nothing is installed
    assert len(list(tmp_path.glob("runs/*/results.json"))) == 1


def test_setup_says_in_one_line_what_is_missing(tmp_path):
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup.sh", "setup.cfg", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, body in {"no-python": "exit 1", "no-venv": 'case "$2" in *venv*) exit 1;; esac; exit 0'}.items():
        (fake / name).write_text(f"#!/bin/sh\n{body}\n")
        (fake / name).chmod(0o755)
    script = ["bash", str(tmp_path / "scripts" / "setup.sh")]
    for tool in ("dirname", "cat", "cksum", "bash"):
        (fake / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    cases = [({"PATH": str(fake)}, "Python 3.10 to 3.13 is missing"), ({"PYTHON": "no-venv"}, "venv is missing")]
    for environment, message in cases:
        done = subprocess.run(script, env={"PATH": str(fake)} | environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
