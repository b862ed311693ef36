"""Sweeps of real runs, their rows in TensorBoard and in tables, and the comparison of two settings."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

from mnist import Error, compare, sweep

import numpy as np
import pytest
import scipy.stats
from conftest import run_here

SETTINGS = ("learning_rate=1e-3", "learning_rate=3e-3")
ARGUMENTS = ["--dataset=digits", "--max_steps=5"]


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """Checks flags and trains in this process, which has imported TensorFlow. The test of SIGTERM starts processes."""

    def check(command, **_):
        return run_here(*command[2 if command[1] == "-m" else 1 :])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnist.cli.other_program.subprocess", types.SimpleNamespace(run=check, DEVNULL=None))
        patch.setattr(sweep, "start", Done)
        yield


def do_sweep(workdir, grid="learning_rate=1e-3,3e-3", **options):
    """Runs a sweep. Returns: its exit code and its output."""
    lines = []
    options = {"seeds": 2, "jobs": 2, "arguments": ARGUMENTS, "say": lines.append} | options
    code = sweep.sweep(str(workdir), grid=grid, **options)
    return code, "\n".join(lines)


def read_csv(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def counts(workdir):
    """Returns the number of finished seeds of each setting, from table.csv."""
    return [row["n"] for row in read_csv(workdir / "table.csv")]


def read_results(workdir, setting):
    paths = [workdir / setting / f"seed={seed}" / "results.json" for seed in range(2)]
    return [json.loads(path.read_text()) for path in paths]


def write_results(folder, **results):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"dataset": "digits"} | results))


class Done:
    """A process that has ended. Its program ran in this process."""

    def __init__(self, run, program, jobs):
        arguments = [f"--flagfile={run.workdir}/sweep.flags", f"--workdir={run.workdir}"]
        done = run_here(program[-1], *arguments)
        self.returncode = done.returncode
        with open(f"{run.workdir}/log.txt", "w") as log:
            log.write(done.stdout + done.stderr)

    def poll(self):
        return self.returncode


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a sweep of two settings with two seeds, and its output."""
    workdir = tmp_path_factory.mktemp("finished") / "sweep"
    code, output = do_sweep(workdir)
    assert code == 0, output
    return workdir, output


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "sweep")


def test_each_run_has_its_flags_its_line_and_its_row(finished):
    workdir, output = finished
    lines, rows = output.splitlines(), read_csv(workdir / "runs.csv")
    assert len(rows) == 4
    for row in rows:
        setting, seed = row["setting"], int(row["seed"])
        results = read_results(workdir, setting)[seed]
        assert {key: row[key] for key in results} == {key: str(value) for key, value in results.items()}
        assert setting == f"learning_rate={row['learning_rate']}"
        flags = (workdir / setting / f"seed={seed}" / "flags.txt").read_text().splitlines()
        rate = f"--learning_rate={float(row['learning_rate'])}"
        assert {f"--seed={seed}", rate, "--max_steps=5", "--dataset=digits"} <= set(flags)
        result = f"{setting} seed={seed}: test accuracy {100 * results['test_accuracy']:.2f} %, "
        assert sum(result in line for line in lines) == 1
    assert lines[3].startswith("[4/4] ")
    assert lines[3].endswith("0:00 left")


def test_the_tables_agree_with_numpy_and_scipy(finished):
    workdir, output = finished
    rows, text = read_csv(workdir / "table.csv"), (workdir / "table.txt").read_text()
    assert [row["setting"] for row in rows] == list(SETTINGS)
    assert text in output
    for row in rows:
        results = read_results(workdir, row["setting"])
        values = np.array([100 * result["test_accuracy"] for result in results])
        interval = scipy.stats.t.interval(0.95, 1, values.mean(), scipy.stats.sem(values))
        seconds = np.median([result["train_seconds"] for result in results])
        expected = [2, values.mean(), values.std(ddof=1), *interval, seconds]
        np.testing.assert_allclose([float(value) for value in list(row.values())[1:]], expected)
        assert f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" in text


def test_only_missing_runs_run_again_and_a_failure_does_not_stop_the_others(copy):
    missing = copy / SETTINGS[1] / "seed=0" / "results.json"
    before = json.loads(missing.read_text())
    times = {path: path.stat().st_mtime_ns for path in copy.glob("*/*/results.json") if path != missing}
    missing.write_text(missing.read_text()[:100])
    code, output = do_sweep(copy, grid="learning_rate=1e9,1e-3,3e-3", seeds=1, jobs=1)
    assert code == 1
    first, *lines = output.splitlines()
    assert first == "1 of 3 runs are finished already"
    failed, done = sorted(lines[:2], key=lambda line: "learning_rate=1e9" not in line)
    assert " learning_rate=1e9 seed=0: FAILED with exit code 1: error: the " in failed
    assert "Try a lower --learning_rate in another --workdir., see " in failed
    assert f" {SETTINGS[1]} seed=0: test accuracy " in done
    assert lines[-1] == "1 of 3 runs FAILED"
    assert json.loads(missing.read_text())["test_accuracy"] == before["test_accuracy"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert counts(copy) == ["0", "1", "1"]


LAUNCH = "from mnist import train\ntrain.launch()"


def test_a_finished_run_is_unfinished_after_an_edit(tmp_path):
    recipe, idea, folder = tmp_path / "recipe.flags", tmp_path / "idea.py", tmp_path / "sweep"

    def count(rate=1, comment=1, steps=1):
        recipe.write_text(f"--learning_rate=0.00{rate}\n")
        idea.write_text(f"{LAUNCH}  # {comment}")
        arguments = [f"--flagfile={recipe}", f"--max_steps={steps}"]
        do_sweep(folder, "", seeds=1, jobs=0, module=str(idea), arguments=arguments)
        return counts(folder)

    values = {}
    for edited in ({}, {"rate": 2}, {"comment": 2}, {"steps": 2}):
        values |= edited
        assert count(**values) == ["0"]
        write_results(folder / "default" / "seed=0", train_seconds=1.0, test_accuracy=0.9)
        assert count(**values) == ["1"]


def test_an_edit_of_the_module_stops_the_sweep_before_the_next_run(tmp_path):
    idea, lines = tmp_path / "idea.py", []

    def say(text):
        lines.append(text)
        idea.write_text("print('new')")

    idea.write_text(LAUNCH)
    with pytest.raises(Error, match=r"idea\.py was edited while the sweep ran: the same command starts again"):
        do_sweep(tmp_path / "sweep", "", module=str(idea), seeds=2, jobs=1, say=say)
    assert len(lines) == 1
    assert not (tmp_path / "sweep" / "default" / "seed=1" / "log.txt").exists()


def test_sigterm_stops_the_runs_after_they_have_saved(tmp_path):
    command = [sys.executable, "-m", "mnist.sweep", f"--workdir={tmp_path / 'sweep'}", "--seeds=1", "--"]
    command += ["--dataset=digits", "--epochs=2000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    run = tmp_path / "sweep" / "default" / "seed=0"
    deadline = time.time() + 60
    while not list(run.glob("checkpoints/ckpt-*.index")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert re.search("stopped; 0 of 1 runs are finished. To resume: .*python -m mnist.sweep --workdir=", output)
    log = (run / "log.txt").read_text()
    assert "stopped at step " in log
    step = log.partition("stopped at step ")[2].partition(",")[0]
    assert (run / "checkpoints" / f"ckpt-{step}.index").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"grid": grid}, "expected NAME=VALUE") for grid in ("rho", "rho=0.1,,0.2", "--rho=1", 'names="a\nb",c')),
        *(({"grid": grid}, "twice") for grid in ("rho=1,1", "rho=1;rho=2")),
        ({"grid": "seed=1,2"}, "the sweep sets"),
        ({"module": "no_such_idea.py"}, "--module=no_such_idea.py: there is no file /"),
        ({"module": "idea.py"}, r"idea\.py does not call mnist\.train\.launch: hello"),
        ({"arguments": ["--epochs", "5"]}, "'5' is not of the form --name=value"),
        ({"grid": "jit_compile=true,false", "arguments": ["--nojit_compile"]}, "is set by this command"),
        ({"arguments": ["--flagfile=no_such.flags"]}, "cannot read no_such.flags"),
        ({"metric": "nonsense"}, "--metric=nonsense: results.json has test_"),
        ({"metric": "test_f1"}, "is a low or a high test_f1 better.* Give --metric=min:test_f1 or max:"),
        ({"module": "mnist.research.sma"}, "there is no such module: did you mean .*mnist.research.sam"),
        ({"grid": "roh=0.1"}, "mnist.train does not start with these flags: there is no flag --roh"),
        ({"grid": "learning_rate=1e-3,-1"}, r"--learning_rate=-1: expected a number from 0 to 1e\+09."),
        ({"grid": 'optimizer="adam,sgd",adam'}, "--optimizer=adam,sgd: expected one of adam"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "idea.py").write_text("print('hello')")
    with pytest.raises(Error, match=message) as caught:
        do_sweep(tmp_path / "sweep", **options)
    assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "sweep").exists()


def test_a_run_with_damaged_results_is_unfinished_and_a_mean_over_two_data_sets_is_rejected(copy):
    (copy / SETTINGS[0] / "seed=0" / "results.json").write_bytes(b'{"dataset": 7}')
    assert "nan" not in do_sweep(copy, jobs=0)[1]
    assert counts(copy) == ["1", "2"]
    assert read_csv(copy / "table.csv")[0]["test_accuracy_std_percent"] == ""
    path = copy / SETTINGS[1] / "seed=0" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "mnist"}))
    with pytest.raises(Error, match=f"{SETTINGS[1]} mixes runs on digits and mnist"):
        do_sweep(copy, jobs=0)


IDEA = """
from absl import flags
from mnist import train
from mnist.settings import Setting
from mnist.step import TrainStep

flags.DEFINE_list("metric", [], "The sweep has a flag of this name, too.")

class Idea(TrainStep):
    noise = Setting(0.1, "Not used.", low=0.0)

    def extra_metrics(self, images, labels, logits):
        return {"error": 0.5 + self.noise, "diverged": float("nan")}

train.launch(Idea)
"""


@pytest.fixture(scope="module")
def idea(tmp_path_factory):
    """A folder with a user's file and its sweep, the results after one with a --metric that no run has, the error."""
    folder = tmp_path_factory.mktemp("idea")
    (folder / "idea.py").write_text(IDEA)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = {"grid": 'metric="a,b";noise=0.2,0.1', "module": "idea.py", "seeds": 1}
        with pytest.raises(Error) as caught:
            do_sweep("sweep", metric="max:test_f1", **options)
        early = list(folder.glob("sweep/*/*/results.json"))
        do_sweep("sweep", metric="test_error", **options)
    return folder, early, str(caught.value)


def test_a_file_with_flags_of_its_own_is_swept_and_never_imported(idea):
    folder, _, _ = idea
    assert "idea" not in sys.modules
    folders = {f"metric=a%2Cb,noise={noise}" for noise in (0.1, 0.2)}
    assert {path.name for path in (folder / "sweep").glob("*=*")} == folders
    for name in folders:
        path = folder / "sweep" / name / "seed=0"
        first = (path / "sweep.flags").read_text().splitlines()[0]
        assert first == f"# python {folder}/idea.py --flagfile=<this file> --workdir=<its folder>"
        flags = (path / "flags.txt").read_text().splitlines()
        assert {f"--{flag}".replace("%2C", ",") for flag in name.split(",")} <= set(flags)


def test_a_metric_that_no_run_has_ends_the_sweep_after_its_first_run(idea):
    folder, early, error = idea
    assert error.startswith("--metric=test_f1: no run has it. The metrics are ")
    assert {"test_error", "test_diverged", "steps"} <= set(re.findall(r"\w+", error))
    assert len(early) == 2  # two run at a time
    assert [row["test_diverged"] for row in read_csv(folder / "sweep" / "runs.csv")] == [""] * 2


def test_the_same_sweep_from_another_folder_only_tabulates_another_metric(idea, tmp_path, monkeypatch):
    folder, _, _ = idea
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    options = {"module": os.path.relpath(folder / "idea.py"), "seeds": 1, "grid": 'metric="a,b";noise=0.2,0.1'}
    before = [path.stat().st_mtime_ns for path in folder.glob("sweep/*/*/results.json")]
    first, _, _, *rows = do_sweep(folder / "sweep", metric="test_error", **options)[1].splitlines()
    assert first == "2 of 2 runs are finished already"
    assert [row.split()[:-1] for row in rows] == [
        [f"metric=a,b,noise={noise}", *star, "1", str(0.5 + noise), "-"] for noise, star in ((0.1, ["*"]), (0.2, []))
    ]
    assert "nan" not in do_sweep(folder / "sweep", metric="max:test_diverged", **options)[1]
    assert counts(folder / "sweep") == ["0"] * 2
    with pytest.raises(Error, match=r"--metric=dataset: results\.json has test_"):
        do_sweep(folder / "sweep", metric="dataset", **options)
    assert [path.stat().st_mtime_ns for path in folder.glob("sweep/*/*/results.json")] == before


@pytest.mark.parametrize("module", ["show.py", "show"])
def test_the_commands_for_slurm_run_a_module_and_a_file(tmp_path, monkeypatch, module):
    (tmp_path / "show.py").write_text(
        "import sys\nprint('The flags are valid.' if '--only_check_args' in sys.argv else sys.argv[1:])"
    )
    monkeypatch.chdir(tmp_path)
    do_sweep("my sweep", "rho=1,2", module=module, seeds=1, jobs=0)
    script = re.search(r"--wrap '(.*?)'", sweep.__doc__, re.DOTALL)[1].replace("find W ", "find 'my sweep' ")
    script = script.replace("python ", f"{sys.executable} ").replace("MODULE", module)
    assert "`python FILE` in place of `python -m MODULE`" in sweep.__doc__
    script = script.replace("-m show.py", "show.py")
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    folder = "my sweep/rho=2/seed=0"
    assert done.stdout == f"{[f'--flagfile={folder}/sweep.flags', f'--workdir={folder}']}\n", done.stderr


def test_a_comparison_agrees_with_scipy_and_pairs_by_seed(tmp_path):
    random = np.random.default_rng(0)
    first = random.normal(0.99, 0.002, 12)
    second = first + random.normal(0.001, 0.0005, 12)
    settings = (dict(enumerate(first)) | {77: 0.5}, dict(reversed(list(enumerate(second)))) | {88: 0.1})
    for name, values in zip("ab", settings, strict=True):
        for seed, value in values.items():
            write_results(tmp_path / name / f"seed={seed}", test_accuracy=value)
    result = compare.compare(*(compare.read_values(str(tmp_path / name), "test_accuracy") for name in "ab"))
    test = scipy.stats.ttest_rel(100 * second, 100 * first)
    assert result["n"] == 12
    assert result["means"] == pytest.approx((100 * first.mean(), 100 * second.mean()))
    assert result["stds"] == pytest.approx((100 * first.std(ddof=1), 100 * second.std(ddof=1)))
    assert result["p_t"] == pytest.approx(test.pvalue, rel=1e-5)
    assert result["interval"] == pytest.approx(tuple(test.confidence_interval()), rel=1e-5)
    assert result["p_wilcoxon"] == pytest.approx(scipy.stats.wilcoxon(second - first).pvalue)
    assert result["d_z"] == pytest.approx(test.statistic / 12**0.5, rel=1e-5)
    text = compare.report(["a", "b"], "test_accuracy", result)
    assert "is distinguishable from chance at n = 12" in text.splitlines()[-1]


LINE = [0.9 + 0.007 * seed for seed in range(8)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([98, 99, 98.5], [99, 98, 98.6], "The difference is not distinguishable from chance at n = 3 (t-test"),
        (LINE[:4], LINE[:4], "There is no difference: each of the 4 seeds gave the same."),
        (LINE[:4], [x + 0.01 for x in LINE[:4]], "not distinguishable from chance at n = 4 (Wilcoxon, p = 0.125)."),
        (LINE, [x + 0.01 for x in LINE], "is distinguishable from chance at n = 8 (Wilcoxon, p = 0.00781)."),
        ([0.9, 0.9], [0.95, 0.95], "Every seed differs by the same."),
    ],
)
def test_the_verdict_fits_the_values_and_nothing_warns(first, second, verdict):
    result = compare.compare(*({("digits", seed): x for seed, x in enumerate(xs)} for xs in (first, second)))
    text = compare.report(["a", "b"], "test_loss", result)
    assert verdict in text.splitlines()[-1]
    assert "nan" not in text
    assert ("not defined" in text) == (np.ptp(np.subtract(second, first)) < 1e-12)
    if len(first) == 3:
        assert "at n = 3 never below 0.25" in text
    assert result["difference"] == pytest.approx(np.mean(second) - np.mean(first))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("nothing", "a=1", "nothing is not a folder"),
        ("empty", "a=1", "empty has no seed=N"),
        ("", "a=1", "has 4 settings"),
        ("old", "a=1", "only some that are older"),
        ("a=1", "a=2", "1 seeds on one data set in common, of 2 and 1"),
        ("a=1", "f1", "f1: --metric=test_accuracy: no run has it. The metrics are test_f1"),
        ("damaged/seed=0", "a=1/seed=0", "damaged/seed=0/results.json is damaged"),
    ],
)
def test_a_comparison_names_the_mistake(tmp_path, first, second, message):
    for setting, seed in (("a=1", 0), ("a=1", 1), ("a=2", 1), ("old", 0)):
        write_results(tmp_path / setting / f"seed={seed}", test_accuracy=0.9)
    write_results(tmp_path / "f1" / "seed=0", test_f1=0.9)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged" / "seed=0").mkdir(parents=True)
    (tmp_path / "damaged" / "seed=0" / "results.json").write_bytes(b"[" * 99999)
    (tmp_path / "old" / "seed=0" / "sweep.flags").write_text("")
    os.utime(tmp_path / "old" / "seed=0" / "results.json", (0, 0))
    with pytest.raises(Error, match=re.escape(message)):
        compare.main(types.SimpleNamespace(metric="test_accuracy"), [str(tmp_path / name) for name in (first, second)])
