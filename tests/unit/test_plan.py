"""The steps at which a plan evaluates, saves and ends."""

from mnist import Error
from mnist.run import Plan

import pytest


def walk(plan, losses=()):
    """Returns the steps after which a run evaluates, the steps after which it saves, and the ends of inner loops."""
    step, evaluated, saves, loops, history = 0, -1, [], [], []
    while True:
        if plan.evaluation_due(step, evaluated):
            evaluated = step
            history.append({"step": step, "validation_loss": ([9.0, *losses] + [0.0] * 99)[len(history)]})
        if plan.save_due(step):
            saves.append(step)
        if plan.why_over(step, history):
            return [entry["step"] for entry in history], saves, loops
        step += min(plan.steps_per_loop, plan.steps_to_next_event(step))
        loops.append(step)


def test_a_run_of_two_epochs_with_a_short_last_batch():
    plan = Plan(23, batch_size=5, epochs=2, steps_per_loop=3)
    assert (plan.steps_per_epoch, plan.last_step) == (5, 10)
    assert walk(plan) == ([0, 5, 10], [5, 10], [3, 5, 8, 10])
    assert plan.batch_sizes(3, 5) == [5, 5, 3, 5, 5]
    assert sum(plan.batch_sizes(1, 10)) == 46
    assert [plan.epoch_of(step) for step in (1, 5, 6, 10)] == [1, 1, 2, 2]
    assert walk(Plan(23, batch_size=5, max_steps=7, steps_per_loop=100))[0] == [0, 5, 7]
    assert [plan.position(step) for step in (0, 4, 5, 9, 10)] == [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0)]


def test_loops_end_at_the_same_steps_wherever_the_run_resumes():
    plan = Plan(23, batch_size=5, checkpoint_every=4, epochs=3)
    for start in range(plan.last_step):
        end = next(step for step in (4, 5, 8, 10, 12, 15) if step > start)
        assert start + plan.steps_to_next_event(start) == end


def test_a_profile_begins_and_ends_at_the_edge_of_a_loop():
    plan = Plan(100, batch_size=5, epochs=1, profile="3:12")
    assert plan.profiled == (3, 12)
    assert walk(plan)[2] == [2, 12, 20]


def test_early_stopping_counts_evaluations_since_the_best():
    plan = Plan(5, batch_size=5, epochs=9, early_stopping_patience=2)
    assert walk(plan, [3.0, 2.0, 2.5, 2.0, 1.0])[0] == [0, 1, 2, 3, 4]
    assert walk(plan, [5.0, 4.0, 3.0, 4.0, 2.0, 1.0, 0.9, 0.8, 0.7])[0] == list(range(10))
    assert not Plan(5, batch_size=5, epochs=9).why_over(8, [{"step": i, "validation_loss": 1.0} for i in range(9)])
    assert not plan.why_over(0)


def test_patience_does_not_count_evaluations_within_an_epoch():
    plan = Plan(23, batch_size=5, eval_every=2, epochs=3, early_stopping_patience=1, steps_per_loop=100)
    losses = [8.0, 9.0, 5.0, 1.0, 6.0, 6.0, 4.0, 4.0, 4.0, 3.0]  # after steps 2, 4, 5, 6, 8, 10, 12, 14, 15
    assert walk(plan, losses) == ([0, 2, 4, 5, 6, 8, 10], [5, 10], [2, 4, 5, 6, 8, 10])


@pytest.mark.parametrize(
    ("options", "best"),
    [
        ({}, None),
        ({"early_stopping_patience": 1}, ("validation_loss", False)),
        ({"keep_best": "validation_accuracy"}, ("validation_accuracy", True)),
        ({"keep_best": "min:validation_accuracy"}, ("validation_accuracy", False)),
        ({"keep_best": "max:train_loss"}, ("train_loss", True)),
    ],
)
def test_keep_best_names_a_metric_and_its_direction(options, best):
    assert Plan(23, batch_size=5, **options).best == best


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 24}, Error, "--batch_size=24 is above the 23 training images"),
        ({"batch_size": 0}, ValueError, "batch_size is 0, expected an integer of at least 1"),
        ({"steps": 5}, TypeError, "Plan has no setting 'steps'; its settings: epochs, max_steps"),
        ({"profile": "9:26"}, Error, "as in --profile=25:25"),
        ({"keep_best": "validation_f1"}, Error, "is the lowest or the highest the best"),
        ({"keep_best": "accuracy"}, Error, "--keep_best=accuracy: expected a metric of training or validation"),
    ],
)
def test_a_wrong_option_is_named(options, error, message):
    with pytest.raises(error, match=message):
        Plan(23, **({"batch_size": 5} | options))
