"""metrics.jsonl and the loss curve: what a resumed run checks and keeps, in bounded memory."""

import contextlib
import json
import random
import tracemalloc

import pytest

from fastlm.train.metrics import SHOWN, Curve, Metrics, Series
from fastlm.train.run import RunError


def records(count):
    generator = random.Random(0)
    for step in range(1, count + 1):
        record = {"step": step, "loss": 5 + generator.random(), "tokens": 512 * step}
        yield record | ({"validation_loss": 5.0} if step % 100 == 0 else {})


@pytest.mark.parametrize(
    "tail", [b'{"step": 3, "lo', b'{"step": 3}', b"[3]\n", b"\xff\xfe\n", b"{}\n", b'{"step": 4}\n']
)
def test_an_unfinished_or_foreign_line_ends_the_metrics(tmp_path, tail):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    with pytest.raises(RunError, match="2 good records where the checkpoint is of step 3"):
        Metrics(file, 3)
    metrics = Metrics(file, 2)
    metrics.append([{"step": 3, "loss": 1.5}])
    metrics.close()
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.5}\n'


@pytest.mark.parametrize("step", [0, 1, 30, 50])
def test_a_resumed_run_has_the_last_records_and_the_curve_of_one_that_goes_on(tmp_path, step):
    file, every = tmp_path / "metrics.jsonl", list(records(50))
    file.write_text("".join(json.dumps(record) + "\n" for record in every))
    resumed = Metrics(file, step)
    assert list(resumed.last) == every[max(0, step - SHOWN) : step]
    resumed.append(every[step:])
    resumed.close()
    assert list(resumed.last) == every[-SHOWN:]
    expected = Curve()
    for record in every:
        expected.add(record)
    assert resumed.curve.training.bins == expected.training.bins
    assert [b.mean for b in resumed.curve.training.bins] == [record["loss"] for record in every]  # exact
    assert [json.loads(line) for line in file.read_text().splitlines()] == every


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 100])
def test_bins_are_what_their_values_are(count):
    values = [record["loss"] for record in records(count)]
    series = Series(max_bins=8)
    for step, value in enumerate(values, start=1):
        series.add(step, value)
    assert len(series.bins) <= 8 and sum(b.count for b in series.bins) == count
    assert all(b.count == series.width for b in series.bins[:-1])
    start = 0
    for b in series.bins:
        inside = values[start : start + b.count]
        assert (b.low, b.high) == (min(inside), max(inside))
        assert b.mean == pytest.approx(sum(inside) / b.count, rel=1e-12)
        assert b.step == pytest.approx(start + (b.count + 1) / 2, rel=1e-12)
        start += b.count


@pytest.mark.parametrize("bins", [0, 1, 7])
def test_bins_that_cannot_be_halved(bins):
    with pytest.raises(ValueError, match=f"max_bins: an even number of at least 2 expected, got {bins}"):
        Series(bins)


@contextlib.contextmanager
def memory_below(limit):
    """Asserts that allocations in the `with` block never hold more bytes at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_a_file_is_read_in_little_memory(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with open(file, "w") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records(20_000))
    assert file.stat().st_size > 1 << 20
    with memory_below(1 << 20):
        Metrics(file, 20_000).close()


def test_a_million_updates_are_kept_in_little_memory():
    """Traces memory only at the end, since tracing triples the time; 100,000 records alone would take 20 MB."""
    curve = Curve()

    def add(steps):
        for step in steps:
            curve.add({"step": step, "loss": 5 + step % 7})

    add(range(1, 900_001))
    with memory_below(1 << 20):
        add(range(900_001, 1_000_001))
    bins = curve.training.bins
    assert 1000 <= len(bins) <= 2000 and sum(b.count for b in bins) == 1_000_000
    assert all((b.low, b.high) == (5, 11) and b.mean == pytest.approx(8, abs=0.01) for b in bins[:-1])
