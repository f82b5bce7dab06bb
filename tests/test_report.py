"""The report's table and the loss curve."""

import json

import pytest
from matplotlib.axes import Axes

from fastlm.tasks.causal_lm import CausalLM
from fastlm.tasks.masked_lm import MaskedLM
from fastlm.train import report
from fastlm.train.metrics import Curve

RESULT = {
    "model": "gpt1_small",
    "parameters": 4_240_384,
    "steps": 970,
    "tokens": 993_280,
    "training_seconds": 181.2,
    "figures": CausalLM.metric_names,
    "scores": {
        "unigram": {"loss": 6.2108, "perplexity": 498.1, "bits_per_byte": 2.1926},
        "gpt1_small": {"loss": 4.7472, "perplexity": 115.27, "bits_per_byte": 1.6759},
    },
    "examples_title": "What it writes",
    "examples": ["**it was** a walk.", "**she had** not."],
}


def test_a_report_in_markdown():
    assert report.markdown(RESULT) == (
        "# gpt1_small: 4,240,384 parameters, 970 updates, 993,280 tokens, 3.0 minutes\n\n"
        "| on the held-out text |  loss | perplexity | bits per byte |\n"
        "| -------------------- | ----: | ---------: | ------------: |\n"
        "| unigram              | 6.211 |      498.1 |         2.193 |\n"
        "| gpt1_small           | 4.747 |      115.3 |         1.676 |\n\n"
        "## What it writes\n\n"
        "- **it was** a walk.\n"
        "- **she had** not.\n"
    )


def test_a_figure_that_a_model_does_not_have_is_left_empty():
    scores = {"bigram": {"mlm_loss": 5.0}, "bert_small": {"mlm_loss": 4.5, "masked_accuracy": 0.253}}
    lines = report.markdown({**RESULT, "figures": MaskedLM.metric_names, "scores": scores}).splitlines()
    assert lines[2] == "| on the held-out text | masked loss | masked accuracy |"
    assert lines[4] == "| bigram               |       5.000 |                 |"
    assert lines[5] == "| bert_small           |       4.500 |           25.3% |"


def test_a_figure_that_the_task_does_not_name_goes_by_its_own_and_examples_may_be_none():
    result = {name: value for name, value in RESULT.items() if not name.startswith("examples")}
    lines = report.markdown({**result, "scores": {"mine": {"f1": 0.5}}}).splitlines()
    assert lines[2:] == [
        "| on the held-out text |    f1 |",
        "| -------------------- | ----: |",
        "| mine                 | 0.500 |",
    ]


@pytest.mark.parametrize(
    "content",
    ['{"model": "gpt', "[]", "{}", json.dumps(RESULT | {"tokens": None}), json.dumps(RESULT | {"scores": [1]})],
)
def test_a_damaged_report_is_named(tmp_path, content):
    file = tmp_path / "report.json"
    file.write_text(content)
    with pytest.raises(
        ValueError, match=r"report\.json: damaged, not the report of a run \(.*; remove it, and "
    ) as caught:
        report.read(file)
    assert "\n" not in str(caught.value)
    file.write_text(json.dumps(RESULT))
    assert report.read(file) == json.loads(json.dumps(RESULT))


def curve(steps):
    made = Curve()
    for step in range(1, steps + 1):
        made.add({"step": step, "loss": 1 + 4 / step**0.2} | ({"validation_loss": 4.4} if step % 10 == 0 else {}))
    return made


def test_the_curve_is_a_png_that_replaces_the_one_before(tmp_path):
    file = tmp_path / "loss.png"
    file.write_bytes(b"old")
    report.plot(curve(20), file, title="gpt1_tiny")
    assert file.read_bytes().startswith(b"\x89PNG\r\n") and len(file.read_bytes()) > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_a_long_run_is_drawn_with_few_points(tmp_path, monkeypatch):
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, *rest, **options: drawn.append(x) or plot(self, x, *rest, **options)
    )
    report.plot(curve(50_000), tmp_path / "loss.png", title="long")
    assert [1000 < len(points) <= most for points, most in zip(drawn, (4000, 2000, 2000), strict=True)] == [True] * 3


def test_smoothing_has_no_bias_of_its_start():
    assert report._smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    smooth = report._smoothed([1.0, 2.0], weight=0.5)
    assert smooth == pytest.approx([1.0, (0.25 * 1 + 0.5 * 2) / 0.75])
