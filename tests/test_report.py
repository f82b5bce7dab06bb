"""The report's table and the loss curve."""

import pytest

from fastlm.train import report

RESULT = {
    "model": "gpt1_small",
    "parameters": 4_240_384,
    "steps": 970,
    "tokens": 993_280,
    "training_seconds": 181.2,
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
        "| on the held-out text |  loss | perplexity | bits a byte |\n"
        "| -------------------- | ----: | ---------: | ----------: |\n"
        "| unigram              | 6.211 |      498.1 |       2.193 |\n"
        "| gpt1_small           | 4.747 |      115.3 |       1.676 |\n\n"
        "## What it writes\n\n"
        "- **it was** a walk.\n"
        "- **she had** not.\n"
    )


def test_a_figure_that_a_model_does_not_have_is_left_empty():
    scores = {"bigram": {"mlm_loss": 5.0}, "bert_small": {"mlm_loss": 4.5, "masked_accuracy": 0.253}}
    lines = report.markdown({**RESULT, "scores": scores}).splitlines()
    assert lines[2] == "| on the held-out text | masked loss | masked accuracy |"
    assert lines[4] == "| bigram               |       5.000 |                 |"
    assert lines[5] == "| bert_small           |       4.500 |           25.3% |"


def test_the_curve_is_a_png_that_replaces_the_one_before(tmp_path):
    records = [{"step": i + 1, "loss": 5 - 0.1 * i} for i in range(20)]
    records[9]["validation_loss"] = 4.4
    file = tmp_path / "loss.png"
    file.write_bytes(b"old")
    report.plot(records, file, title="gpt1_tiny")
    assert file.read_bytes().startswith(b"\x89PNG\r\n") and len(file.read_bytes()) > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_smoothing_has_no_bias_of_its_start():
    assert report._smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    smooth = report._smoothed([1.0, 2.0], weight=0.5)
    assert smooth == pytest.approx([1.0, (0.25 * 1 + 0.5 * 2) / 0.75])
