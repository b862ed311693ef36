"""Sweeps of real runs, as TensorBoard and the tables show them, and the comparison of two settings."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import urllib.request

from mnist import Error
from scripts import compare, sweep
from scripts.results import format_table, summarize

import numpy as np
import pytest
import scipy.stats

SETTINGS = ("learning_rate=1e-3", "learning_rate=3e-3")
ARGUMENTS = ["--dataset=digits", "--max_steps=5"]


@pytest.fixture(scope="module", autouse=True)
def quick_start(python):
    """Has the sweeps of this file start their runs without the seconds that TensorFlow takes to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python)
        yield


def do_sweep(workdir, grid="learning_rate=1e-3,3e-3", **options):
    """Runs a sweep. Returns: its exit code and all that it said."""
    said = []
    options = {"seeds": 2, "jobs": 2, "arguments": ARGUMENTS, "say": said.append} | options
    code = sweep.sweep(str(workdir), grid=grid, **options)
    return code, "\n".join(said)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of two settings and two seeds, with what it said."""
    workdir = tmp_path_factory.mktemp("finished") / "sweep"
    code, said = do_sweep(workdir)
    assert code == 0, said
    return workdir, said


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "sweep")


def read_results(workdir, setting):
    paths = [workdir / setting / f"seed={seed}" / "results.json" for seed in range(2)]
    return [json.loads(path.read_text()) for path in paths]


def test_each_run_has_its_flags_and_says_how_it_went(finished):
    workdir, said = finished
    lines = said.splitlines()
    for setting in SETTINGS:
        for seed, results in enumerate(read_results(workdir, setting)):
            flags = (workdir / setting / f"seed={seed}" / "flags.txt").read_text().splitlines()
            rate = float(setting.partition("=")[2])
            assert {f"--seed={seed}", f"--learning_rate={rate}", "--max_steps=5", "--dataset=digits"} <= set(flags)
            said_of_it = f"{setting} seed={seed}: test accuracy {100 * results['test_accuracy']:.2f} %, "
            assert sum(said_of_it in line for line in lines) == 1
    assert lines[3].startswith("[4/4] ")
    assert lines[3].endswith("0:00 left")


def test_the_tables_hold_what_numpy_and_scipy_say(finished):
    workdir, said = finished
    with open(workdir / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == list(SETTINGS)
    text = (workdir / "table.txt").read_text()
    assert text in said
    for row in rows:
        results = read_results(workdir, row["setting"])
        values = np.array([100 * result["test_accuracy"] for result in results])
        interval = scipy.stats.t.interval(0.95, 1, values.mean(), scipy.stats.sem(values))
        seconds = np.median([result["train_seconds"] for result in results])
        expected = [2, values.mean(), values.std(ddof=1), *interval, seconds]
        np.testing.assert_allclose([float(value) for value in list(row.values())[1:]], expected)
        assert f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" in text
    with open(workdir / "runs.csv") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 4
    for run in runs:
        results = read_results(workdir, run["setting"])[int(run["seed"])]
        assert {key: run[key] for key in results} == {key: str(value) for key, value in results.items()}
        assert run["setting"] == f"learning_rate={run['learning_rate']}"


def test_tensorboard_shows_settings_seeds_and_metrics(finished):
    workdir, _ = finished
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(workdir), "--port=0"]
    with open(workdir.parent / "tensorboard.log", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url, deadline = None, time.time() + 60
            while not url and time.time() < deadline:
                time.sleep(0.2)
                log.seek(0)
                url = next((word for word in log.read().split() if word.startswith("http://")), None)

            def post(name, **request):
                question = urllib.request.Request(
                    f"{url}data/plugin/hparams/{name}",
                    json.dumps(request).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(question) as answer:
                    return json.load(answer)

            statuses = {"allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"]}
            groups = []
            while sum("train_seconds" in str(group) for group in groups) < 4 and time.time() < deadline:
                time.sleep(0.2)
                groups = post("session_groups", startIndex=0, sliceSize=9, **statuses).get("sessionGroups", [])
            experiment = post("experiment")
        finally:
            process.terminate()
            process.wait()
    types = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    assert types["module"] == "DATA_TYPE_STRING"
    assert {types[name] for name in ("learning_rate", "seed", "batch_size")} == {"DATA_TYPE_FLOAT64"}
    tags = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {f"results/{metric}" for metric in (*sweep.METRICS, "best_validation_loss", "train_seconds")} <= tags
    rows = {session["name"]: (group, session) for group in groups for session in group["sessions"]}
    assert len(groups) == len(rows) == 4
    for setting in SETTINGS:
        for seed, results in enumerate(read_results(workdir, setting)):
            group, session = rows[f"{setting}/seed={seed}/validation"]
            rate = float(setting.partition("=")[2])
            assert {f"seed={seed}", "dataset=digits"} <= set(group["name"].split())
            assert (f"learning_rate={rate}" in group["name"]) == (rate != 0.001)  # what is no default
            assert group["hparams"]["learning_rate"] == rate
            assert (group["hparams"]["seed"], group["hparams"]["dataset"]) == (seed, "digits")
            metrics = {value["name"]["tag"]: value["value"] for value in session["metricValues"]}
            for metric in sweep.METRICS:
                assert metrics[f"results/{metric}"] == pytest.approx(results[metric])


def test_only_what_is_missing_runs_again_and_a_failure_does_not_stop_the_rest(copy):
    missing = copy / SETTINGS[1] / "seed=0" / "results.json"
    before = json.loads(missing.read_text())
    others = [path for path in copy.glob("*/*/results.json") if path != missing]
    times = [path.stat().st_mtime_ns for path in others]
    missing.unlink()
    code, said = do_sweep(copy, grid="learning_rate=1e9,1e-3,3e-3", seeds=1, jobs=2)
    assert code == 1
    lines = said.splitlines()
    assert lines[0] == "1 of 3 runs are finished already"
    failed, done = sorted(lines[1:3], key=lambda line: "learning_rate=1e9" not in line)
    assert " learning_rate=1e9 seed=0: FAILED with exit code 1: error: the " in failed
    assert "Try a lower --learning_rate in another --workdir., see " in failed
    assert f" {SETTINGS[1]} seed=0: test accuracy " in done
    assert "1 of 3 runs FAILED" in said
    assert json.loads(missing.read_text())["test_accuracy"] == before["test_accuracy"]
    assert [path.stat().st_mtime_ns for path in others] == times
    with open(copy / "table.csv") as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["0", "1", "1"]


def test_other_flags_make_a_finished_run_an_unfinished_one(copy):
    code, _ = do_sweep(copy, jobs=0)
    assert code == 0
    assert len(list(copy.glob("*/*/results.json"))) == 4
    code, _ = do_sweep(copy, jobs=0, arguments=["--dataset=digits", "--max_steps=6"])
    assert code == 0
    assert len(list(copy.glob("*/*/results.json"))) == 4  # kept, and not counted
    with open(copy / "table.csv") as file:
        assert {row["n"] for row in csv.DictReader(file)} == {"0"}
    for path in copy.glob("*/*/sweep.flags"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# python -m mnist.train --flagfile=")
        assert lines[1:] == ["--dataset=digits", "--max_steps=6", f"--{path.parts[-3]}", f"--{path.parts[-2]}"]


def test_sigterm_stops_the_runs_which_save(tmp_path):
    script = os.path.join(os.path.dirname(sweep.__file__), "sweep.py")
    flags = [f"--workdir={tmp_path / 'sweep'}", "--seeds=1", "--", "--dataset=digits", "--epochs=2000"]
    process = subprocess.Popen([sys.executable, script, *flags], stdout=subprocess.PIPE, text=True)
    run = tmp_path / "sweep" / "default" / "seed=0"
    deadline = time.time() + 60
    while not list(run.glob("checkpoints/ckpt-*.index")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"stopped; 0 of 1 runs are finished. To resume: python {script} --workdir=" in said
    log = (run / "log.txt").read_text()
    assert "stopped at step " in log
    step = log.partition("stopped at step ")[2].partition(",")[0]
    assert (run / "checkpoints" / f"ckpt-{step}.index").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": "rho"}, "expected NAME=VALUE"),
        ({"grid": "rho=0.1,,0.2"}, "expected NAME=VALUE"),
        ({"grid": "rho="}, "expected NAME=VALUE"),
        ({"grid": "rho=1;"}, "expected NAME=VALUE"),
        ({"grid": "--rho=1"}, "expected NAME=VALUE"),
        ({"grid": "rho=1,1"}, "twice"),
        ({"grid": "rho=1;rho=2"}, "twice"),
        ({"grid": "seed=1,2"}, "the sweep sets"),
        ({"seeds": 0}, "--seeds=0"),
        ({"grid": 'rho="0.1,0.2'}, "expected NAME=VALUE"),
        ({"grid": 'names="a\nb",c'}, "expected NAME=VALUE"),
        ({"grid": 'names="a,b","a,b"'}, "twice"),
        ({"module": "mnist.no_such_module"}, "--module=mnist.no_such_module does not start .*No module named"),
        ({"module": "no_such_package.module"}, "--module=no_such_package.module does not start .*No module named"),
        ({"module": ""}, "--module='' is no name of a module"),
        ({"module": "no_such_idea.py"}, "--module=no_such_idea.py: there is no file /"),
        ({"module": "mnist/research"}, "--module=mnist/research: there is no file /"),
        ({"arguments": ["--epochs", "5"]}, "'5' is not of the form --name=value"),
        ({"arguments": ["--seed=5"]}, "is set by this script"),
        ({"arguments": ["--learning_rate=1"]}, "is set by this script"),
        ({"grid": "jit_compile=true,false", "arguments": ["--nojit_compile"]}, "is set by this script"),
        ({"arguments": ["--flagfile=no_such.flags"]}, "cannot read no_such.flags"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(Error, match=message) as caught:
        do_sweep(tmp_path / "sweep", **options)
    assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("roh=0.1", "--module=mnist.train does not start with these flags: there is no flag --roh"),
        ("learning_rate=1e-3,-1", "--learning_rate=-1: expected a number from 0 to 1e+09."),
        ("jit_compile=true,maybe", "expected true or false"),
        ("nojit_compile=true", "--nojit_compile=true does not take an argument."),
        ('optimizer="adam,sgd",adam', "--optimizer=adam,sgd: expected one of adam"),
    ],
)
def test_flags_that_the_module_does_not_take_are_refused_before_the_first_run(tmp_path, grid, message):
    with pytest.raises(Error, match=re.escape(message)) as caught:
        do_sweep(tmp_path / "sweep", grid=grid)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


def test_a_flag_that_is_refused_leaves_finished_runs_finished(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    with pytest.raises(Error, match="there is no flag --max_stesp: did you mean --max_steps"):
        do_sweep(copy, arguments=["--dataset=digits", "--max_stesp=5"])
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


IDEA = """
from absl import flags
from mnist import train
from mnist.settings import Setting
from mnist.step import TrainStep

flags.DEFINE_list("metric", [], "The sweep has a flag of this name, too.")

class Idea(TrainStep):
    noise = Setting(0.1, "Of no use.", low=0.0)

    def extra_metrics(self, images, labels, logits):
        return {"error": 0.5 + self.noise, "diverged": float("nan")}

train.launch(Idea)
"""


@pytest.fixture(scope="module")
def idea(tmp_path_factory):
    """A folder with a file of a user, a sweep of it whose --metric no run has, and what was said."""
    folder = tmp_path_factory.mktemp("idea")
    (folder / "idea.py").write_text(IDEA)
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        grid = 'metric="a,b",c;noise=0.2,0.1'
        with pytest.raises(Error) as caught:
            do_sweep("sweep", grid, module="idea.py", seeds=1, metric="test_f1", say=said.append)
    return folder, said, str(caught.value)


def test_a_file_with_flags_of_its_own_is_swept_and_never_imported(idea):
    folder, _, _ = idea
    assert "idea" not in sys.modules
    assert {path.name for path in (folder / "sweep").glob("*=*")} == {
        f"metric={value},noise={noise}" for value in ("a%2Cb", "c") for noise in (0.1, 0.2)
    }
    for path in (folder / "sweep").glob("*/seed=0"):
        lines = (path / "sweep.flags").read_text().splitlines()
        assert lines[0] == f"# python {folder}/idea.py --flagfile=<this file> --workdir=<its folder>"
        values = dict(part.split("=") for part in path.parent.name.replace("%2C", "+").split(","))
        flags = (path / "flags.txt").read_text().splitlines()
        assert {f"--noise={values['noise']}", f"--metric={values['metric'].replace('+', ',')}"} <= set(flags)


def test_a_metric_that_no_run_has_is_said_early_and_stops_no_run(idea):
    folder, said, error = idea
    results = json.loads(next((folder / "sweep").glob("*/*/results.json")).read_text())
    keys = {key for key, value in results.items() if value is None or type(value) in (int, float)}
    assert error.startswith("--metric=test_f1: no run has it; there are ")
    assert f"{error} The runs go on; the same command with another --metric tabulates them." in said[1:3]
    assert len(said) == 5
    assert set(error.partition("; there are ")[2].rstrip(".").split(", ")) == keys
    assert len(list((folder / "sweep").glob("*/*/results.json"))) == 4
    with open(folder / "sweep" / "runs.csv") as file:
        assert {row["test_diverged"] for row in csv.DictReader(file)} == {""}
    assert not (folder / "sweep" / "table.txt").exists()


def test_the_same_sweep_from_another_folder_only_tabulates_a_metric_of_ones_own(idea, tmp_path, monkeypatch):
    folder, _, _ = idea
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    options = {"module": os.path.relpath(folder / "idea.py"), "seeds": 1, "grid": 'metric="a,b",c;noise=0.2,0.1'}
    before = [path.stat().st_mtime_ns for path in folder.glob("sweep/*/*/results.json")]
    code, said = do_sweep(folder / "sweep", metric="test_error", **options)
    assert code == 0
    lines = said.splitlines()
    assert lines[0] == "4 of 4 runs are finished already"
    assert [line.split() for line in lines[3:]] == [
        [f"metric={value},noise={noise}", *star, "1", str(0.5 + noise), "-", seconds.split()[-1]]
        for (value, noise, star), seconds in zip(
            [("a,b", 0.1, "*"), ("c", 0.1, "*"), ("a,b", 0.2, ""), ("c", 0.2, "")], lines[3:], strict=True
        )
    ]
    code, said = do_sweep(folder / "sweep", metric="test_diverged", **options)
    assert code == 0
    assert "nan" not in said
    with open(folder / "sweep" / "table.csv") as file:
        assert {(row["n"], row["test_diverged_mean"]) for row in csv.DictReader(file)} == {("0", "")}
    with pytest.raises(Error, match="--metric=dataset: no run has it; there are "):
        do_sweep(folder / "sweep", metric="dataset", **options)
    assert "test diverged" in (folder / "sweep" / "table.txt").read_text()
    assert [path.stat().st_mtime_ns for path in folder.glob("sweep/*/*/results.json")] == before


def test_a_file_that_needs_what_is_missing_is_refused_in_its_own_words(tmp_path):
    (tmp_path / "idea.py").write_text("import no_such_library")
    with pytest.raises(Error, match=r"idea\.py does not start with these flags: .*No module named 'no_such_library'"):
        do_sweep(tmp_path / "sweep", module=str(tmp_path / "idea.py"))
    assert not (tmp_path / "sweep").exists()


def test_a_file_that_trains_nothing_is_told_what_is_expected(tmp_path):
    (tmp_path / "idea.py").write_text("print('hello')")
    code, said = do_sweep(tmp_path / "sweep", "", module=str(tmp_path / "idea.py"), seeds=1)
    assert code == 1
    assert "FAILED with exit code 0: hello (it wrote no results: does it call mnist.train.launch?), see " in said
    assert "nan" not in said + (tmp_path / "sweep" / "table.csv").read_text()


@pytest.mark.parametrize("module", ["show.py", "show"])
def test_the_commands_for_slurm_run_a_module_and_a_file(tmp_path, monkeypatch, module):
    (tmp_path / "show.py").write_text("import sys\nif '--only_check_args' not in sys.argv: print(sys.argv[1:])")
    monkeypatch.chdir(tmp_path)
    do_sweep("my sweep", "rho=1,2", module=module, seeds=1, jobs=0)
    script = re.search(r"--wrap '(.*?)'", sweep.__doc__, re.DOTALL)[1].replace("find W ", "find 'my sweep' ")
    script = script.replace("python ", f"{sys.executable} ").replace("MODULE", module)
    assert "with `python FILE` in place of `python -m MODULE`" in sweep.__doc__
    script = script.replace("-m show.py", "show.py")
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    folder = "my sweep/rho=2/seed=0"
    assert done.stdout == f"{[f'--flagfile={folder}/sweep.flags', f'--workdir={folder}']}\n", done.stderr


def test_the_table_has_the_best_setting_first_and_marked():
    lines = table_of({"a": [0.98, 0.97], "b": [0.99, 0.98], "c": [None], "long name": [0.98, 0.99]}, "test_accuracy")
    assert [line[:12].split("  ")[0].strip() for line in lines[1:]] == ["b *", "long name *", "a", "c"]
    assert lines[0].split()[2:5] == ["test", "accuracy,", "%"]
    assert lines[1].split()[2:9] == ["2", "98.500", "±", "0.707", "92.147", "..", "104.853"]
    assert lines[-1].split() == ["c", "0", "-", "-", "-"]


@pytest.mark.parametrize("metric", ["test_loss", "validation_calibration_error", "train_seconds"])
def test_of_a_loss_an_error_and_seconds_the_lowest_is_the_best(metric):
    lines = table_of({"a": [0.5], "b": [0.25], "c": [None, None]}, metric)
    assert "%" not in lines[0].replace("95 %", "")
    assert [line.split()[:-1] for line in lines[1:]] == [
        ["b", "*", "1", "0.25", "-"],
        ["a", "1", "0.5", "-"],
        ["c", "0", "-", "-"],
    ]


@pytest.mark.parametrize(("metric", "shown"), [("test_robust_accuracy_0.3", "50.000"), ("images_per_second", "0.5")])
def test_of_others_the_highest_is_the_best_and_accuracies_are_in_percent(metric, shown):
    assert table_of({"a": [0.25], "b": [0.5]}, metric)[1].split()[:4] == ["b", "*", "1", shown]


def table_of(values, metric):
    """The lines of a table; `values` is a dict from settings to the metric of each seed, None for NaN."""

    class Finished(sweep.Run):
        def read_results(self):
            return {"dataset": "digits", metric: values[self.name][self.seed]}

    runs = [Finished(name, {}, seed, "", "") for name, of in values.items() for seed in range(len(of))]
    return format_table(summarize(runs, metric), metric).splitlines()


DAMAGE = [b'{"dataset": "digits", "test_acc', b"[1, 2]", b'{"dataset": 7}', b"\xff\xfe", b"[" * 99999]


@pytest.mark.parametrize("content", DAMAGE)
def test_a_run_whose_results_are_damaged_is_unfinished(copy, content):
    (copy / SETTINGS[0] / "seed=0" / "results.json").write_bytes(content)
    code, said = do_sweep(copy, jobs=0)
    assert code == 0
    assert "nan" not in said
    with open(copy / "table.csv") as file:
        rows = {row["setting"]: row for row in csv.DictReader(file)}
    assert [rows[setting]["n"] for setting in SETTINGS] == ["1", "2"]
    assert rows[SETTINGS[0]]["test_accuracy_std_percent"] == ""


def test_damaged_results_are_written_again(copy):
    path = copy / SETTINGS[0] / "seed=0" / "results.json"
    before = path.read_text()
    path.write_text(before[: len(before) // 2])
    code, said = do_sweep(copy)
    assert code == 0
    assert said.startswith("3 of 4 runs are finished already")
    assert json.loads(path.read_text())["test_loss"] == json.loads(before)["test_loss"]


def test_results_of_another_program_have_no_such_metric(copy):
    for path in copy.glob("*/*/results.json"):
        path.write_text('{"dataset": "digits", "steps": "many", "test_accuracy": "high", "train_seconds": true}')
    with pytest.raises(Error, match=r"--metric=test_accuracy: no run has it; there are \.$"):
        do_sweep(copy)


def test_two_plain_runs_are_compared_by_flags_and_metrics(finished):
    folders = [str(finished[0] / setting / "seed=0") for setting in SETTINGS]
    lines = compare.compare_runs(folders).splitlines()
    assert lines[0].split() == folders
    assert lines[1].split() == ["--learning_rate", "0.001", "0.003"]
    values = [read_results(finished[0], setting)[0]["test_loss"] for setting in SETTINGS]
    (row,) = [line.split() for line in lines if line.startswith("test_loss")]
    assert [float(cell) for cell in row[1:]] == pytest.approx([*values, values[1] - values[0]], rel=1e-3)


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match=r"cannot write to .*file"):
        do_sweep(tmp_path / "file")


def test_a_path_as_a_value_stays_one_folder():
    runs = sweep.make_runs("W", sweep.parse_grid("data_dir=a/b,a_b; epochs=1"), 1, ["-m", "mnist.train"], [])
    assert [run.workdir for run in runs] == ["W/data_dir=a%2Fb,epochs=1/seed=0", "W/data_dir=a_b,epochs=1/seed=0"]
    assert [run.setting["data_dir"] for run in runs] == ["a/b", "a_b"]


@pytest.mark.parametrize(("jobs", "threads"), [(1, "4"), (2, "2"), (3, "1"), (9, "1")])
def test_the_cores_are_shared_out(tmp_path, monkeypatch, jobs, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    (tmp_path / "show_threads.py").write_text(
        "import os\nprint({k: v for k, v in os.environ.items() if 'THREADS' in k})"
    )
    monkeypatch.chdir(tmp_path)
    sweep.start(sweep.Run("default", {}, 0, str(tmp_path), ""), ["-m", "show_threads"], jobs).wait()
    shown = (tmp_path / "log.txt").read_text()
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        assert f"'{name}': '{threads}'" in shown


def write_setting(folder, accuracies):
    """Writes results.json files; `accuracies` is a dict from seeds to test accuracies."""
    for seed, accuracy in accuracies.items():
        (folder / f"seed={seed}").mkdir(parents=True)
        (folder / f"seed={seed}" / "results.json").write_text(
            json.dumps({"dataset": "digits", "test_accuracy": accuracy})
        )
    return str(folder)


def compare_settings(tmp_path, first, second):
    """Returns the numbers and the text of a comparison."""
    folders = [write_setting(tmp_path / "sweep" / name, values) for name, values in (("a=1", first), ("a=2", second))]
    result = compare.compare(*(compare.read_values(folder, "test_accuracy") for folder in folders))
    return result, compare.report(folders, "test_accuracy", result)


def test_comparison_equals_scipy_and_pairs_by_seed(tmp_path):
    random = np.random.default_rng(0)
    first = random.normal(0.99, 0.002, 12)
    second = first + random.normal(0.001, 0.0005, 12)
    result, text = compare_settings(
        tmp_path, dict(enumerate(first)) | {77: 0.5}, dict(reversed(list(enumerate(second)))) | {88: 0.1}
    )
    test = scipy.stats.ttest_rel(100 * second, 100 * first)
    assert result["n"] == 12
    assert result["means"] == pytest.approx((100 * first.mean(), 100 * second.mean()))
    assert result["stds"] == pytest.approx((100 * first.std(ddof=1), 100 * second.std(ddof=1)))
    assert result["p_t"] == pytest.approx(test.pvalue, rel=1e-5)
    assert result["interval"] == pytest.approx(tuple(test.confidence_interval()), rel=1e-5)
    assert result["p_wilcoxon"] == pytest.approx(scipy.stats.wilcoxon(second - first).pvalue)
    assert result["d_z"] == pytest.approx(test.statistic / 12**0.5, rel=1e-5)
    assert "is distinguishable from chance at n = 12" in text.splitlines()[-1]


def test_noise_is_called_noise(tmp_path):
    _, text = compare_settings(tmp_path, {0: 0.98, 1: 0.99, 2: 0.985}, {0: 0.99, 1: 0.98, 2: 0.986})
    assert "is not distinguishable from chance at n = 3" in text.splitlines()[-1]
    assert "at n = 3 never below 0.25" in text


@pytest.mark.parametrize(
    ("count", "shift", "verdict"),
    [
        (4, 0, "There is no difference: each of the 4 seeds gave the same."),
        (4, 0.01, "The difference is not distinguishable from chance at n = 4 (Wilcoxon, p = 0.125)."),
        (8, 0.01, "The difference is distinguishable from chance at n = 8 (Wilcoxon, p = 0.00781)."),
    ],
)
def test_equal_differences(tmp_path, count, shift, verdict):
    first = {seed: 0.9 + 0.007 * seed for seed in range(count)}
    result, text = compare_settings(tmp_path, first, {seed: value + shift for seed, value in first.items()})
    assert result["difference"] == pytest.approx(100 * shift)
    assert result["interval"] == pytest.approx((100 * shift, 100 * shift))
    assert "not defined" in text
    assert "nan" not in text.replace(str(tmp_path), "")
    assert verdict in text.splitlines()[-1]


def test_comparison_names_mistakes(tmp_path):
    with pytest.raises(Error, match="1 seeds on one data set in common, of 2 and 1"):
        compare_settings(tmp_path, {0: 0.9, 1: 0.9}, {1: 0.9})
    with pytest.raises(Error, match="is not a folder"):
        compare.read_values(str(tmp_path / "nothing"), "test_accuracy")
    with pytest.raises(Error, match="has 2 settings"):
        compare.read_values(str(tmp_path / "sweep"), "test_accuracy")
    with pytest.raises(Error, match="has no seed=N"):
        compare.read_values(str(tmp_path / "sweep" / "a=1" / "seed=0"), "test_accuracy")
    with pytest.raises(Error, match="a=1: --metric=validation_accuracy: no run has it; there are test_accuracy"):
        compare.read_values(str(tmp_path / "sweep" / "a=1"), "validation_accuracy")
    shutil.rmtree(tmp_path / "sweep" / "a=2")
    values = compare.read_values(str(tmp_path / "sweep"), "test_accuracy")  # of a single setting
    assert values == {("digits", 0): 90, ("digits", 1): 90}
    others = {("mnist", seed): value for (_, seed), value in values.items()}
    with pytest.raises(Error, match="0 seeds on one data set in common"):
        compare.compare(values, others)


def test_settings_are_compared_by_any_metric_and_a_seed_without_it_is_left_out(tmp_path):
    folders = []
    for name, values in (("a=1", [0.5, 0.25, None, 0.5]), ("a=2", [0.75, 1.0, 0.5, math.nan])):
        folders.append(tmp_path / name)
        for seed, value in enumerate(values):
            (tmp_path / name / f"seed={seed}").mkdir(parents=True)
            content = json.dumps({"dataset": "digits", "test_f1": value} if seed < 3 else {"dataset": "digits"})
            (tmp_path / name / f"seed={seed}" / "results.json").write_text(content)
    values = [compare.read_values(str(folder), "test_f1") for folder in folders]
    text = compare.report(["a", "b"], "test_f1", compare.compare(*values))
    assert text.startswith("test f1, 2 seeds in common, of 4 and 4\n")
    assert "0.375 ± 0.17678" in text
    assert "+0.5, 95 % interval " in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], "There is no difference"),
        ([1e-12, 3e-12, 2e-12], [2e-12, 9e-12, 4e-12], "The difference is not distinguishable"),
        ([0.9, 0.9, 0.9], [0.9, 0.9, 0.95], "The difference is not distinguishable"),
        ([0.9, 0.9], [0.95, 0.95], "Every seed differs by the same."),
    ],
)
def test_equal_and_tiny_values_are_compared_without_a_warning(first, second, verdict):
    result = compare.compare(*({("digits", i): v for i, v in enumerate(values)} for values in (first, second)))
    text = compare.report(["a", "b"], "test_loss", result)
    assert verdict in text
    assert "nan" not in text


@pytest.mark.parametrize("content", DAMAGE)
def test_damaged_results_are_named_by_both_comparisons(tmp_path, content):
    for name in ("a", "b"):
        folder = tmp_path / "sweep" / name / "seed=0"
        folder.mkdir(parents=True)
        (folder / "results.json").write_bytes(content)
    named = re.escape(f"{tmp_path}/sweep/a/seed=0/results.json is damaged")
    with pytest.raises(Error, match=named):
        compare.main(types.SimpleNamespace(metric="test_accuracy"), [str(tmp_path / "sweep" / n) for n in "ab"])
    with pytest.raises(Error, match=named):
        compare.main(None, [str(tmp_path / "sweep" / name / "seed=0") for name in "ab"])


def test_runs_without_flags_and_with_numbers_that_only_one_has_are_compared(tmp_path):
    for name, numbers in (("a", {"test_loss": 0.5, "test_f1": None}), ("b", {"test_loss": None, "test_auc": 0.75})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"dataset": "digits", "steps": 5} | numbers))
    (tmp_path / "b" / "flags.txt").write_bytes(b"# python\n--data_dir=\xff\n")
    lines = [line.split() for line in compare.compare_runs([str(tmp_path / name) for name in "ab"]).splitlines()]
    assert lines[1][:2] == ["--data_dir", "-"]
    assert lines[2:] == [["test_loss", "0.5", "-"], ["test_f1", "-", "-"], ["test_auc", "-", "0.75"]]


@pytest.mark.parametrize(("other", "message"), [("empty", "it has no results.json"), ("missing", "is none")])
def test_a_run_and_a_folder_that_is_none_are_not_compared(finished, tmp_path, other, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match=message):
        compare.main(None, [str(finished[0] / SETTINGS[0] / "seed=0"), str(tmp_path / other)])
    with pytest.raises(Error, match="has no seed=N" if other == "empty" else "is not a folder"):
        compare.main(types.SimpleNamespace(metric="test_accuracy"), [str(tmp_path / other)] * 2)


def test_a_mean_over_two_data_sets_is_refused(copy):
    path = copy / SETTINGS[0] / "seed=0" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "mnist"}))
    with pytest.raises(Error, match=f"{SETTINGS[0]} mixes runs on digits and mnist"):
        do_sweep(copy, jobs=0)


def test_an_edited_flagfile_makes_a_finished_run_an_unfinished_one(tmp_path):
    recipe = tmp_path / "recipe.flags"
    options = {"grid": "", "seeds": 1, "arguments": [*ARGUMENTS, f"--flagfile={recipe}"]}
    counts = []
    for rate in (0.001, 0.001, 0.002):
        recipe.write_text(f"--learning_rate={rate}\n")
        do_sweep(tmp_path / "sweep", jobs=0, **options)
        if not counts:
            write_results(tmp_path / "sweep" / "default" / "seed=0")
        do_sweep(tmp_path / "sweep", jobs=0, **options)
        with open(tmp_path / "sweep" / "table.csv") as file:
            counts += [row["n"] for row in csv.DictReader(file)]
    assert counts == ["1", "1", "0"]


def write_results(folder):
    """Writes a results.json as a run of ARGUMENTS would."""
    results = {"dataset": "digits", "steps": 5, "train_seconds": 1.0} | dict.fromkeys(sweep.METRICS, 0.9)
    (folder / "results.json").write_text(json.dumps(results))


def test_an_edited_module_makes_a_finished_run_an_unfinished_one(tmp_path):
    idea, counts = tmp_path / "idea.py", []
    for content in ("print(1)", "print(1)", "print(2)"):
        idea.write_text(content)
        do_sweep(tmp_path / "sweep", "", jobs=0, module=str(idea), seeds=1)
        if not counts:
            write_results(tmp_path / "sweep" / "default" / "seed=0")
        do_sweep(tmp_path / "sweep", "", jobs=0, module=str(idea), seeds=1)
        with open(tmp_path / "sweep" / "table.csv") as file:
            counts += [row["n"] for row in csv.DictReader(file)]
    assert counts == ["1", "1", "0"]


def test_a_module_that_is_edited_while_the_sweep_runs_stops_it_before_the_next_run(tmp_path):
    idea, said = tmp_path / "idea.py", []

    def say(text):
        said.append(text)
        idea.write_text("print('new')")

    idea.write_text("print('old')")
    with pytest.raises(Error, match=r"idea\.py was edited while the sweep ran: the same command begins anew"):
        do_sweep(tmp_path / "sweep", "", module=str(idea), seeds=2, jobs=1, say=say)
    assert len(said) == 1
    assert not (tmp_path / "sweep" / "default" / "seed=1" / "log.txt").exists()


def test_results_that_are_older_than_the_flags_are_left_out_of_a_comparison(tmp_path):
    for name in ("a=1", "a=2"):
        write_setting(tmp_path / name, {0: 0.5, 1: 0.5, 2: 0.5})
        for seed, age in enumerate((0, -1, 1)):
            flagfile = tmp_path / name / f"seed={seed}" / "sweep.flags"
            flagfile.write_text("")
            written = flagfile.with_name("results.json").stat().st_mtime_ns
            os.utime(flagfile, ns=(written, written + age * 10**9))
    assert compare.read_values(str(tmp_path / "a=1"), "test_accuracy") == {("digits", 0): 50, ("digits", 1): 50}
    with pytest.raises(Error, match="seed=2 is none"):
        compare.main(None, [str(tmp_path / "a=1" / f"seed={seed}") for seed in (0, 2)])
    with pytest.raises(Error, match="only some that are older"):
        compare.main(types.SimpleNamespace(metric="test_accuracy"), [str(tmp_path / "a=1" / "seed=2")] * 2)
