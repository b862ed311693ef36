"""Data are identified by their content and by the names of their classes, code by its revision."""

import contextlib
import subprocess
import sys

from mnist import Error, compare, data, finished
from mnist.checkpoint import steps
from mnist.data import check_same_classes
from mnist.metrics import seeds
from mnist.research.distillation import Distillation
from mnist.run import provenance

import numpy as np
import pytest
from conftest import make_linear, random_examples

NAMES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def write_data(folder, names=NAMES, seed=0):
    """Writes a data set of ten classes to an npz file. Equal seeds give equal arrays. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (x_train, y_train), (x_test, y_test) = random_examples(40, seed), random_examples(20, seed + 1)
    np.savez(folder / "own.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    (folder / "classes.txt").write_text("\n".join(names))
    return folder


@pytest.fixture
def train(command):
    def run(folder, workdir, *flags, **launched):
        sizes = ("--max_steps=2", "--batch_size=8", f"--data_dir={folder}", f"--workdir={workdir}")
        return command(*sizes, *flags, model=make_linear, **launched)

    return run


@pytest.mark.parametrize("names", [NAMES[::-1], [*NAMES[:8], "ten", "nine"]], ids=["reversed", "two exchanged"])
@pytest.mark.parametrize("way", ["resume", "--init_from", "--teacher", "evaluate", "evaluate another"])
def test_class_names_in_another_order_are_refused(tmp_path, train, start, way, names):
    own, run, new = write_data(tmp_path / "own"), tmp_path / "run", tmp_path / "new"
    assert train(own, run)[0] == 0
    other = write_data(tmp_path / "other" if "another" in way else own, names)
    if way.startswith("evaluate"):
        done = start("mnist.evaluate", f"--workdir={run}", *([f"--data_dir={other}"] if "another" in way else []))
        error = done.stderr
        assert done.returncode == 1
    else:
        flags = {"--init_from": [f"--init_from={run}"], "--teacher": [f"--teacher={run}"]}.get(way, ["--epochs=9"])
        options = {"step": Distillation} if way == "--teacher" else {}
        error, _, _ = train(other, run if way == "resume" else new, *flags, **options)
        assert not (new / "flags.txt").exists()
        assert list(steps(str(run / "checkpoints"))) == [2]
    label = 0 if names[0] != "one" else 8
    moved = f"the name of class {label} was {NAMES[label]}" if way == "resume" else f"class '{NAMES[label]}' has label"
    assert moved in str(error)


@pytest.mark.parametrize(
    ("names", "others", "may_differ", "trouble"),
    [
        ("ab", "ab", False, None),
        ("01", "ab", False, None),  # without names
        ("ab", "abc", False, None),
        ("ab", "cd", True, None),
        ("38", "01", False, "label 0 is '3' in A, but '0' in B"),
        ("ab", "ac", False, "label 1 is 'b' in A, but 'c' in B"),
        ("abc", "bcd", True, "class 'b' has label 1 in A, but label 0 in B"),
        ("01", "10", False, "class '0' has label 0 in A, but label 1 in B"),
    ],
)
def test_which_class_names_fit(names, others, may_differ, trouble, caplog):
    with pytest.raises(Error, match=f"^{trouble}") if trouble else contextlib.nullcontext():
        check_same_classes(tuple(names), tuple(others), "A", "B", may_differ)
    assert ("A names no classes: its label 0 is taken for 'a' of B" in caplog.text) == (names + others == "01ab")


def test_a_known_data_set_under_the_name_of_another_is_refused(tmp_path, monkeypatch, caplog):
    folder = write_data(tmp_path / "raw")
    data.load("fashion_mnist", str(folder))
    assert "holds other images or labels than are published" in caplog.text
    digest = data.load("auto", str(folder)).arrays_digest()
    monkeypatch.setattr(data.sources, "_MNIST_SHA256", digest)
    assert data.load("auto", str(folder)).name == "mnist"
    with pytest.raises(Error, match=r"^--dataset=fashion_mnist, but .*raw holds mnist: leave out"):
        data.load("fashion_mnist", str(folder))


@pytest.mark.parametrize(
    ("seed", "names", "holdout", "other_images"),
    [
        (0, NAMES, 0, set()),
        (7, NAMES, 0, {"train", "validation", "test"}),
        (0, NAMES[::-1], 0, {"train"}),
        (0, NAMES, 10, {"train", "validation"}),
    ],
    ids=["a copy", "other images", "other names", "a hold-out"],
)
def test_runs_are_compared_by_their_images_not_by_the_name_of_a_folder(
    tmp_path, train, seed, names, holdout, other_images
):
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert train(write_data(tmp_path / "1" / "raw"), runs[0])[0] == 0
    assert train(write_data(tmp_path / "2" / "raw", names, seed), runs[1], f"--holdout={holdout}")[0] == 0
    results = [seeds.read_results(run) for run in runs]
    assert results[0]["dataset"] == results[1]["dataset"] == "raw"
    text = compare.compare_runs(runs)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if "_loss" in line}
    assert {name.removesuffix("_loss") for name, cells in rows.items() if len(cells) == 2} == other_images
    assert ("no difference of metrics on different images" in text) == bool(other_images)
    if other_images:
        with pytest.raises(Error, match=r"mixes runs on raw \(.{8}\) and raw \(.{8}\)"):
            seeds.summarize({"setting": results}, "test_accuracy")


def test_results_name_the_code_of_the_package_and_of_the_program(tmp_path, monkeypatch, train):
    program = tmp_path / "repository" / "program.py"
    program.parent.mkdir()
    program.write_text("a = 1\n")
    git = ["git", "-C", program.parent, "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "program.py"], ["commit", "-q", "-m", "First"]):
        subprocess.run([*git, *arguments], check=True)
    revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(sys, "argv", [str(program)])
    with monkeypatch.context() as hook:
        hook.setenv("GIT_DIR", str(tmp_path))  # as git sets it for its hooks
        found = provenance.describe()
    assert (found["program_revision"], found["program_clean"]) == (revision, True)
    assert found["package_revision"] != revision
    (program.parent / "größer.py").write_text("b = 3\n")
    assert not provenance.describe()["git_clean"]
    program.write_text("a = 2\n")
    text = provenance.changes(provenance.describe() | {"package_clean": True})
    assert [line for line in text.splitlines() if line[:2] in ("+a", "-a", "+b")] == ["-a = 1", "+a = 2", "+b = 3"]
    monkeypatch.setattr(provenance, "MAX_CHANGES", 100)
    cut = provenance.changes(provenance.describe() | {"package_clean": True})
    assert cut == f"{text[:100]}\n... cut after 100 characters\n"
    (program.parent / ".gitignore").write_text("program.py\n")
    subprocess.run([*git, "rm", "-q", "--cached", "program.py"], check=True)
    assert provenance.describe()["program_revision"] is None  # as for a file in the environment of a project
    for name, value in (("a", "1"), ("b", "2")):
        assert train(write_data(tmp_path / "data"), tmp_path / name)[0] == 0
        (tmp_path / name / "changes.diff").write_text(f"diff --git x\n+x\ndiff --git y\n+{value}\n")
    lines = compare.compare_runs([str(tmp_path / "a"), str(tmp_path / "b")]).splitlines()
    assert [line for line in lines if line.startswith("+")] == ["+1", "+2"]


def test_a_run_that_knows_other_images_is_named(tmp_path, train, caplog):
    folder = write_data(tmp_path / "own")
    assert train(folder, tmp_path / "run")[0] == 0
    for holdout, count in ((0, 0), (10, 1)):
        caplog.clear()
        new = tmp_path / f"new_{holdout}"
        assert train(folder, new, f"--init_from={tmp_path / 'run'}", f"--holdout={holdout}")[0] == 0
        assert caplog.text.count("it may have learnt images that validate here") == count
    assert finished.load(str(tmp_path / "run")).dataset_sha256 == data.load("own", str(folder)).digest()
