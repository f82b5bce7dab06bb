"""metrics.jsonl and the loss curve: what a resumed run checks and keeps, in bounded memory."""

import contextlib
import json
import random
import tracemalloc

import pytest

from fastlm.train.metrics import SHOWN, Curve, Metrics, Series


def records(count):
    generator = random.Random(0)
    for step in range(1, count + 1):
        record = {"step": step, "loss": 5 + generator.random(), "tokens": 512 * step, "tokens_per_second": 9}
        yield record | ({"validation_loss": 5.0} if step % 100 == 0 else {})


def lines_of(count):
    return [json.dumps(record).encode() + b"\n" for record in records(count)]


DAMAGED = [
    b'{"step": 3, "lo\n',
    b"[3]\n",
    b"3\n",
    b"\xff\xfe\n",
    b"\0" * 40 + b"\n",
    b'{"step": 3}\n',
    b'{"step": 3, "loss": "low", "tokens_per_second": 9}\n',
    b'{"step": 3, "loss": NaN, "tokens_per_second": 9}\n',
    b'{"step": 2.5, "loss": 1, "tokens_per_second": 9}\n',
    lines_of(2)[1],  # a line again
    lines_of(9)[8],  # of a later update than the checkpoint's
    b"",
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_is_left_out(tmp_path, damaged):
    file, lines = tmp_path / "metrics.jsonl", lines_of(6)
    file.write_bytes(b"".join([*lines[:2], damaged, *lines[3:5]]))
    metrics = Metrics(file, 5)
    assert metrics.lost == 1 and [record["step"] for record in metrics.last] == [1, 2, 4, 5]
    assert [b.step for b in metrics.curve.training.bins] == [1, 2, 4, 5]
    metrics.append([json.loads(lines[5])])
    metrics.close()
    assert file.read_bytes().splitlines(keepends=True) == [*lines[:2], *lines[3:]]


def test_a_line_without_its_end_is_left_out(tmp_path):
    """It may be a part of a longer line whose beginning is valid, and the next record would be appended to it."""
    file, lines = tmp_path / "metrics.jsonl", lines_of(3)
    file.write_bytes(b"".join(lines)[:-1])
    metrics = Metrics(file, 3)
    metrics.close()
    assert metrics.lost == 1 and file.read_bytes() == b"".join(lines[:2])


@pytest.mark.parametrize("step", [0, 7])
def test_a_lost_file_is_begun_again(tmp_path, step):
    metrics = Metrics(tmp_path / "metrics.jsonl", step)
    assert metrics.lost == step and not metrics.last
    metrics.append(list(records(8))[step:])
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True) == lines_of(8)[step:]


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
