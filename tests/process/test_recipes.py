"""The recipes in scripts/recipes, and the script that times one of them."""

import json
import pathlib
import re

from mnist import checkpoint
from mnist.machine import num_threads

import pytest
from conftest import nightly_but

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.flags"))


@pytest.mark.parametrize("name", nightly_but(["1_epoch.flags", "speedrun.flags"], [path.name for path in RECIPES]))
def test_a_recipe_runs_by_the_command_in_its_first_line(name, start, tmp_path):
    path = ROOT / "scripts" / "recipes" / name
    command = re.fullmatch(r"# python -m (mnist[.\w]+ --flagfile=scripts/recipes/(.*))", path.open().readline()[:-1])
    assert command[2] == path.name
    arguments = [*command[1].split(), "--dataset=digits", "--epochs=20", "--dry_run", f"--workdir={tmp_path}"]
    arguments += [f"--intra_op_threads={num_threads()}"]  # TensorFlow has started with these threads
    done = start(*arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["steps"] in (6, 10)  # 1,500 images, at most 10 steps
    fingerprint = checkpoint.load_newest(str(tmp_path / "checkpoints"))[1]["fingerprint"]
    flags = {name: float(n) for name, n in re.findall(r"^--(\w+)=([\d.]+)$", path.read_text(), re.MULTILINE)}
    reached = flags.keys() & fingerprint.keys()  # the others belong to the optimizer, or may change
    assert {name: fingerprint[name] for name in reached} == {name: flags[name] for name in reached}
    assert "smoothing" in reached or path.stem == "variants"
