"""The state of a run beside its variables. Every checkpoint holds it as JSON."""

import dataclasses

from mnist.metrics import RunningMeans


@dataclasses.dataclass
class RunState:
    """The part of a run that a resume needs beside the variables; each value is plain JSON.

    Attributes:
      step: number of updates so far.
      totals: dict from the names of the step's scalars to their sums over the epoch so far, weighted by batch size.
      count: number of images in `totals`.
      history: list of dicts, one per evaluation: `step`, `train_<metric>`, `validation_<metric>`.
      times: list of the seconds of training before each evaluation.
      seconds: seconds of training so far.
      images: number of images that the run has trained on.
      fingerprint: dict of everything that the numbers depend on, see `checkpoint.fingerprint_of`.
      traced: digest of the traced step. None before the first trace.
      provenance: dict of the versions, the code and the machine, see `run.provenance`.
      dataset, data_dir: name and folder of the data.
      classes: names of the classes.
      framed: whether the images are framed as those of MNIST.
      test_sha256: digest of the test set.
      measures: description of the step's own metrics, see `step.describe_measuring`. None if it has none.
      keep_best: key of the kept metric, and whether its highest value is the best. None if no checkpoint is kept.
    """

    step: int = 0
    totals: dict[str, float] = dataclasses.field(default_factory=dict)
    count: int = 0
    history: list[dict] = dataclasses.field(default_factory=list)
    times: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    images: int = 0
    fingerprint: dict | None = None
    traced: str | None = None
    provenance: dict = dataclasses.field(default_factory=dict)
    dataset: str = ""
    data_dir: str | None = None
    classes: tuple[str, ...] = ()
    framed: bool = True
    test_sha256: str | None = None
    measures: dict | None = None
    keep_best: tuple[str, bool] | None = None

    @classmethod
    def from_json(cls, found):
        """Returns the state in a dict that `to_json` gave. Ignores other keys; missing keys keep their defaults."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in names})

    def to_json(self):
        """Returns a dict with one key per attribute."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def evaluated(self):
        """The step of the last evaluation; -1 before the first."""
        return self.history[-1]["step"] if self.history else -1

    @property
    def means(self):
        """Means over the epoch so far: a dict from the names of the step's scalars to floats."""
        return RunningMeans(self.totals, self.count).means()

    def add_steps(self, scalars, batch_sizes, seconds):
        """Counts consecutive steps.

        Args:
          scalars: dict of float32 arrays `[steps]`, the scalars of each step.
          batch_sizes: list of the number of images in each step.
          seconds: seconds that the steps took.
        """
        means = RunningMeans(self.totals, self.count)
        means.add(scalars, batch_sizes)
        self.totals, self.count = means.totals, means.count
        self.step += len(batch_sizes)
        self.images += sum(batch_sizes)
        self.seconds += seconds

    def add_evaluation(self, entry, ends_epoch):
        """Appends an entry to the history. The sums start again at 0 if it ends an epoch."""
        self.history.append(entry)
        self.times.append(self.seconds)
        if ends_epoch:
            self.totals, self.count = {}, 0
