"""A grid of runs: its trials, the mean and deviation over seeds, the table and the picture."""

import statistics

import pytest

from fastlm.commands.search import parse_grid
from fastlm.train.pictures import plot_confusion, plot_trials
from fastlm.train.trials import best_of, summarise, table, trials_of


def test_a_grid_is_parsed_with_the_options_types():
    grid = parse_grid("learning-rate=2e-5,3e-5 seed=0,1 --batch-size=16 head_bias=true,false")
    assert grid == {"learning_rate": [2e-5, 3e-5], "seed": [0, 1], "batch_size": [16], "head_bias": [True, False]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"search: OPTION=VALUE,VALUE,... \(such as learning_rate=2e-5,3e-5\) expected, got ''"),
        ("rate=1", "search: OPTION=VALUE,VALUE,... of an option of finetune expected, got 'rate=1'"),
        ("train_file=a,b", "search: OPTION=VALUE,VALUE,... of an option of finetune expected"),
        ("seed=0,x", r"search: seed: invalid literal for int\(\) with base 10: 'x'"),
        ("seed=", "search: seed: invalid literal"),
        ("head_bias=yes", "search: head_bias: true or false expected, got 'yes'"),
        ("seed=1,2,1", "search: different values of seed expected, got '1,2,1'"),
        ("seed=1 seed=2", "search: seed once expected"),
    ],
)
def test_a_grid_that_makes_no_sense_is_named(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_grid(text)


def test_every_combination_is_a_trial_with_a_folder_of_its_own():
    trials = trials_of({"learning_rate": [2e-5, 3e-5], "seed": [0, 1, 2]})
    assert [trial.name for trial in trials][:2] == ["learning_rate=2e-05,seed=0", "learning_rate=2e-05,seed=1"]
    assert len({trial.name for trial in trials}) == 6
    assert trials[-1].options == {"learning_rate": 3e-5, "seed": 2}


RESULTS = [
    ({"learning_rate": rate, "seed": seed}, score)
    for rate, scores in ((2e-5, (0.5, 0.75, 0.7)), (3e-5, (0.9, 0.8, 0.85)))
    for seed, score in enumerate(scores)
]


def test_seeds_are_joined_into_mean_and_deviation():
    low, high = summarise(RESULTS)
    assert (low.options, low.scores) == ({"learning_rate": 2e-5}, [0.5, 0.75, 0.7])
    assert low.mean == pytest.approx(statistics.mean(low.scores))
    assert low.deviation == pytest.approx(statistics.stdev(low.scores))
    assert best_of([low, high], "f1") is high and best_of([low, high], "loss") is low


def test_the_table():
    assert table(summarise(RESULTS), "f1", ("F1", ".3f")) == [
        "| learning_rate | seeds | F1, mean | deviation | lowest | highest |      |",
        "| ------------- | ----: | -------: | --------: | -----: | ------: | ---: |",
        "| 2e-05         |     3 |    0.650 |     0.132 |  0.500 |   0.750 |      |",
        "| 3e-05         |     3 |    0.850 |     0.050 |  0.800 |   0.900 | best |",
    ]


def test_one_seed_has_no_deviation():
    (only,) = summarise([({"epochs": 2.0, "seed": 0}, 0.5)])
    assert only.deviation is None
    assert table([only], "f1", ("F1", ".1%"))[2] == "| 2.0    |     1 |    50.0% |         - |  50.0% |   50.0% |"


def test_the_worst_mean_is_nan():
    rows = summarise([({"epochs": 1.0}, float("nan")), ({"epochs": 2.0}, 0.1)])
    assert best_of(rows, "f1").options == best_of(rows, "loss").options == {"epochs": 2.0}


def test_pictures(tmp_path):
    plot_trials(summarise(RESULTS), tmp_path / "search.png", metric="F1", title="mrpc")
    labels = [f"label {i}" for i in range(40)]
    counts = [[int(i == j) for i in range(40)] for j in range(40)]
    counts[3] = [0] * 40  # a label that no example has
    plot_confusion({"labels": labels, "counts": counts}, tmp_path / "confusion.png", title="mrpc")
    for name in ("search", "confusion"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
