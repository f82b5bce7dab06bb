"""The benchmarks' arithmetic, checks and reports. No test here depends on measured times."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import compare, lengths, limits, machine, report, run, session, tables, timing
from benchmarks.case import Peer, Unavailable, with_gradients
from benchmarks.cases import cases
from benchmarks.cases.attention import Attention, AttentionPacked
from benchmarks.cases.embedding_layer_norm import EmbeddingLayerNorm
from benchmarks.cases.layer_norm import AddLayerNorm
from benchmarks.cases.linear_cross_entropy import LinearCrossEntropy
from benchmarks.check import OURS, Check, Refused, check_keep_rate
from benchmarks.grid import Grid
from benchmarks.models import ModelCase, candidates, check_candidates, model_cases, run_model
from benchmarks.results import Record, Results, ResultsError, quartiles
from fastlm.ops import SPECS

LIMITS = limits.Limits("float32", ((1000, 1.0), (4000, 4.0), (16000, 8.0)), 1e9, 64, 2e9)


class FakeClock(timing.Clock):
    """A clock that makes one call and returns the given samples, in microseconds."""

    def __init__(self, *samples: float):
        super().__init__(torch.device("cpu"), timing.QUICK)
        self.fake_samples = samples or (5.0, 6.0, 7.0)

    def samples(self, call, prepare):
        call(prepare(0))
        return self.fake_samples


def bench(**options) -> run.Bench:
    return run.Bench(FakeClock(), LIMITS, torch.float32, **options)


def record(**changes) -> Record:
    values = dict.fromkeys(("bytes", "flops", "exponentials"), 100) | {"samples_us": (5.0, 6.0, 7.0), "status": "timed"}
    values |= {"kind": "op", "name": "layer_norm", "shape": "4 x 8", "dtype": "float32", "pass_": "both"}
    return Record(**values | {"candidate": "triton", "ours": True, "lower_bound_us": 3.0, "bound": "copy"} | changes)


def results(*records: Record, **changes) -> Results:
    values = {"created": "2026-01-02T03:04:05+00:00", "command": "python -m benchmarks", "quick": False}
    values |= {"machine": {"name": "GPU", "device": "cuda"}, "versions": {"torch": "2.11.0"}}
    values |= {"commit": {"sha": "0123456789abcdef", "date": None, "dirty": False}, "limits": LIMITS.to_json()}
    return Results(**values | changes, records=list(records))


# Statistics and files ------------------------------------------------------------------------------------------------


def test_median_and_quartiles():
    r = record(samples_us=(9.0, 1.0, 2.0, 4.0, 3.0))
    assert (r.median_us, r.quartiles_us, r.fraction) == (3.0, (2.0, 4.0), 1.0)
    assert quartiles((7.0,)) == (7.0, 7.0)
    assert quartiles((1.0, 3.0)) == (1.5, 2.5)


def test_effort_ends_by_samples_and_by_time():
    effort = timing.Effort(least=3, most=5, seconds=1e9)
    assert [effort.enough(n, 0.0) for n in (2, 4, 5)] == [False, False, True]
    assert timing.Effort(least=3, most=50, seconds=0.0).enough(3, 0.0)


def test_a_clock_rotates_and_prepares_outside_of_the_samples():
    seen = []
    clock = timing.Clock(torch.device("cpu"), timing.Effort(least=4, most=4))
    samples = clock.samples(seen.append, lambda i: i % 3)
    assert len(samples) == 4 and all(s > 0 for s in samples)
    assert seen == [0, 1, 2, 0, 1, 2, 0]  # three calls to warm up
    assert clock.extra_bytes(lambda: None) is None


def test_steps_on_a_gpu_are_timed_from_end_to_end_and_without_a_wait_between():
    class Event:
        def __init__(self, ms: int):
            self.ms = ms

        def elapsed_time(self, later: Event) -> int:
            return later.ms - self.ms

    calls: list[object] = []

    class Gpu(timing.Clock):
        def _event(self) -> Event:
            calls.append("event")
            return Event(len(calls) ** 2)

        def _wait(self) -> None:
            calls.append("wait")

    clock = Gpu(torch.device("cpu"), timing.Effort(least=2, most=2))
    clock.on_gpu = True
    assert clock.steps(calls.append, lambda i: i) == ((6**2 - 4**2) * 1e3, (8**2 - 6**2) * 1e3)
    assert calls == [0, 1, 2, "event", 1, "event", 2, "event", "wait"]


@pytest.mark.gpu
def test_steps_on_a_gpu_hold_the_time_that_it_waits_for_the_host():
    clock = timing.Clock(torch.device("cuda"), timing.Effort(least=4, most=4))
    assert min(clock.steps(time.sleep, lambda i: 0.02)) > 15_000


def test_results_survive_their_file(tmp_path):
    written = results(record(), record(candidate="liger", ours=False, status="skipped", reason="no", samples_us=()))
    written.write(tmp_path / "new" / "a.json")
    assert Results.read(tmp_path / "new" / "a.json") == written
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"status": "fast"}, "status must be one of"),
        ({"samples_us": ()}, "'timed' goes with samples"),
        ({"status": "skipped"}, "any other status with a reason"),
        ({"reason": "slow"}, "any other status with a reason"),
        ({"samples_us": (1.0, 0.0)}, "must be positive"),
        ({"samples_us": (1.0, float("nan"))}, "must be positive"),
        ({"mfu": 1.04}, "an MFU of 1.04 is impossible"),
        ({"bound": "hope"}, "bound must be one of"),
        ({"pass_": "sideways"}, "pass_ must be one of"),
    ],
)
def test_records_that_contradict_themselves_are_not_written(changes, sentence, tmp_path):
    with pytest.raises(ResultsError, match=sentence):
        results(record(**changes)).write(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"schema": 1', '"schema": 2', "not a file of results of schema 1"),
        ('"median_us": 6.0', '"median_us": 5.9', "is not that of the samples"),
        ('"tokens": null', '"coins": null', "differ from the schema's in"),
        ("{", "[", "is not JSON"),
    ],
)
def test_other_files_are_refused(old, new, sentence, tmp_path):
    file = tmp_path / "a.json"
    results(record()).write(file)
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ResultsError, match=sentence):
        Results.read(file)


# Limits, counts, MFU -------------------------------------------------------------------------------------------------


def test_a_copy_s_time_lies_between_the_measured_ones():
    assert [LIMITS.copy_us(n) for n in (10, 1000, 4000, 16000, 32000)] == [1.0, 1.0, 4.0, 8.0, 16.0]
    assert LIMITS.copy_us(2000) == pytest.approx(2.0)  # halfway in logarithms
    assert LIMITS.copy_us(8000) == pytest.approx(4 * 2**0.5)
    assert LIMITS.copy_rate == 2e9
    assert limits.Limits.from_json(LIMITS.to_json()) == LIMITS


def test_the_floor_is_the_largest_of_three():
    assert LIMITS.lower_bound(4000, 1000, 1000) == (4.0, "copy")  # a product of 1 us, exponentials of 0.5 us
    assert LIMITS.lower_bound(4000, 9000, 1000) == (9.0, "matrix")
    assert LIMITS.lower_bound(4000, 9000, 20_000) == (10.0, "exponential")
    assert dataclasses.replace(LIMITS, exponentials=None).lower_bound(4000, 9000, 20_000) == (9.0, "matrix")
    assert LIMITS.lower_bounds([(4000, 0, 0), (0, 9000, 0)]) == (13.0, "matrix")


def test_measured_limits_are_sane():
    measured = limits.measure(timing.Clock(torch.device("cpu"), timing.QUICK), torch.float32, quick=True)
    times = [us for _, us in measured.copies]
    assert times == sorted(times) and min(times) > 0
    assert min(measured.gemm_flops, measured.exponentials, measured.copy_rate) > 0


def test_pairs_of_attention():
    """Two sequences of 3 have 9 pairs each, or 6 if causal. GPT-1's 64 sequences of 512: 64 * 512 * 513 / 2."""
    assert Attention("", batch=2, length=3).pairs() == 18
    assert Attention("", batch=2, length=3, causal=True).pairs() == 12
    gpt1 = Attention("", batch=64, length=512, causal=True)
    assert gpt1.pairs() == 8_404_992
    assert gpt1.exponentials() == (100_859_904, 100_859_904)
    padded = Attention("", batch=4, length=64, form="padded")
    assert padded.pairs() == sum(n * n for n in lengths.lengths(4, 64))
    assert padded.cost(torch.bfloat16) == dataclasses.replace(padded, form="packed").cost(torch.bfloat16)


def test_costs_of_cases_are_those_of_their_shapes():
    bert = EmbeddingLayerNorm("", 0.1, batch=3, length=4, columns=8, vocabulary=10)
    assert bert.cost(torch.bfloat16) == SPECS["embedding_layer_norm"].cost(12, 8, 10, 4, 2, element=2, table=2)
    gpt1 = dataclasses.replace(bert, bert=False)
    assert gpt1.cost(torch.float32) == SPECS["embedding_layer_norm"].cost(12, 8, 10, 4, 0, 4, 4, layer_norm=False)
    causal = Attention("", batch=2, length=4, heads=3, causal=True)
    assert causal.cost(torch.float16) == SPECS["attention"].cost(20, 8, 3, 64)


def test_costs_of_cases_are_in_their_dtype():
    case = AddLayerNorm("", 0.1, rows=10, columns=4)
    assert case.cost(torch.float32).forward_bytes - case.cost(torch.bfloat16).forward_bytes == 4 * 2 * 40
    assert LinearCrossEntropy("", rows=3, columns=2, vocabulary=4).cost(torch.float32).forward_flops == 48


def test_flops_of_a_step():
    """GPT-1, FLOP per token: 6 * 12 * (4 * 768^2 + 2 * 768 * 3072 + 2 * 256.5 * 768) + 6 * 40478 * 768."""
    token = 72 * (2_359_296 + 4_718_592 + 393_984) + 186_522_624
    assert ModelCase("gpt1", 64, 512).flops() == 32768 * token
    bert = ModelCase("bert_base", 256, 128)  # 19 of 128 positions are predicted
    head = round(6 * 19 / 128 * (768**2 + 30522 * 768))
    assert bert.flops() == 32768 * (72 * (2_359_296 + 4_718_592 + 2 * 128 * 768) + head)


def test_mfu_is_of_a_known_peak_or_none(monkeypatch):
    case, candidate = ModelCase("gpt1_tiny", 2, 8), candidates(ModelCase("gpt1_tiny", 2, 8), on_gpu=False)[0]
    from benchmarks import models

    step = {"status": "timed", "samples_us": (1000.0,)}
    assert models._record(case, bench(), candidate, **step).mfu is None
    monkeypatch.setattr(machine, "peak_flops", lambda: case.flops() * 4e3)
    assert models._record(case, bench(), candidate, **step).mfu == pytest.approx(0.25)


def test_an_unknown_gpu_has_no_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, peak in (("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("X", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert machine.peak_flops() == peak
    monkeypatch.setattr(machine, "name", lambda: "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz")
    assert machine.slug() == "intel-xeon-gold-6338-cpu"


def test_lengths_are_those_of_text_and_repeat():
    found = lengths.lengths(64, 128)
    assert found == lengths.lengths(64, 128) and len(found) == 64
    assert min(found) > 3 and max(found) == 128 and 40 < sum(found) / 64 < 90
    assert found != sorted(found)


# Right or refused ----------------------------------------------------------------------------------------------------

SMALL = [
    AddLayerNorm("s", 0.1, rows=6, columns=48),
    EmbeddingLayerNorm("s", 0.1, batch=2, length=9, columns=32, vocabulary=50),
    EmbeddingLayerNorm("s", 0.1, batch=2, length=9, columns=32, vocabulary=50, bert=False),
    *(
        Attention("s", p, batch=3, length=40, heads=2, form=f)
        for f in ("whole", "padded", "packed")
        for p in (0.1, 0.0)
    ),
    Attention("s", 0.1, batch=2, length=40, heads=2, causal=True),
    AttentionPacked("s", 0.1, batch=2, length=40, heads=2, causal=True),
    LinearCrossEntropy("s", rows=20, columns=16, vocabulary=30, bias=True),
]
# The small cases of all other ops, so that a new op's case is checked too; adamw's has no inputs to differentiate.
SMALL += [case for case in cases(Grid(32, small=True)) if case.op not in {"adamw", *(c.op for c in SMALL)}]


def check_of(case) -> Check:
    generator = torch.Generator().manual_seed(1)
    return Check(case, with_gradients(case.inputs(generator)), generator)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c.op} {c.shape}")
def test_the_reference_is_right_in_every_case(case):
    check = check_of(case)
    assert check.checked_error(lambda t: case.ours(t, "reference"), OURS) <= OURS


@pytest.mark.parametrize("case", [c for c in SMALL if not c.dropout_p and c.op == "attention"], ids=lambda c: c.shape)
def test_an_excerpt_is_a_part_of_the_whole(case, monkeypatch):
    monkeypatch.setattr("benchmarks.cases.attention.MAX_EXACT_SCORES", 2 * 40 * 40)
    part = case.excerpt(check_of(case).inputs)
    assert case.qkv(part)[0].shape[0] < case.rows()[0]
    check_of(case).checked_error(lambda t: case.ours(t, "reference"), OURS)
    with pytest.raises(Refused):
        check_of(case).checked_error(lambda t: case.ours(t, "reference") + 1e-3, OURS)


def test_exact_results_in_chunks_are_those_of_the_whole(monkeypatch):
    case = LinearCrossEntropy("s", rows=20, columns=16, vocabulary=30, bias=True)
    t = with_gradients(case.inputs(torch.Generator().manual_seed(1)), torch.float64)
    whole = case.naive_results(t, None, None)
    monkeypatch.setattr("benchmarks.cases.linear_cross_entropy.EXACT_ROWS", 7)
    for name, x in case.naive_results(t, None, None).items():
        torch.testing.assert_close(x, whole[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", [c for c in SMALL if c.dropout_p], ids=lambda c: f"{c.op} {c.shape}")
def test_a_probe_sees_what_dropout_keeps(case):
    large = {"rows": 400} if case.op == "add_layer_norm" else {"batch": 24}
    case = dataclasses.replace(case, dropout_p=0.25, **large)
    t = case.inputs(torch.Generator().manual_seed(1))
    check_keep_rate(case, lambda t: case.ours(t, "reference"), t)
    with pytest.raises(Refused, match=r"rounds: it keeps 0\.[67].* where 0\.6 was asked for"):
        check_keep_rate(dataclasses.replace(case, dropout_p=0.4), lambda t: case.ours(t, "reference"), t)


@dataclasses.dataclass(frozen=True)
class Planted(AddLayerNorm):
    """add_layer_norm with one fault, as backend "triton", and with two faulty peers."""

    fault: str = ""

    def ours(self, t, backend):
        y = super().ours(t, "reference")
        if self.fault == "value":
            return y * 1.001
        if self.fault == "gradient":  # right values, wrong gradient of beta
            return y + (t["beta"] - t["beta"].detach()) * 0.01
        if self.fault == "mask":
            return super().ours(t | {"seed": t["seed"] + 1}, "reference")
        if self.fault == "nan":
            return torch.where(torch.arange(y.shape[1]) == 3, torch.nan, y)
        if self.fault == "crash":
            raise RuntimeError("an illegal memory access\nwas encountered")
        return y

    def backends(self, dtype, device):
        return {"triton": None}

    def peers(self):
        def unavailable(t):
            raise Unavailable("is on the moon")

        return [
            Peer("sixteenths", lambda t: dataclasses.replace(self, dropout_p=self.dropout_p and 0.125).eager),
            Peer("absent", unavailable),
            *super().peers()[:1],
        ]


@pytest.mark.parametrize("fault", ["value", "gradient", "mask", "nan", "crash"])
def test_a_planted_wrong_kernel_is_refused_a_timing(fault):
    case = Planted("40 x 64", 0.1, rows=40, columns=64, fault=fault)
    found = {}
    for r in run.run_case(case, bench()):
        found.setdefault(r.candidate, []).append(r)
        r.check()
    assert {r.pass_ for r in found["triton"]} == {"forward", "backward", "both"}
    wrong = "failed" if fault == "crash" else "refused"
    assert all(r.status == wrong and not r.samples_us for r in found["triton"])
    assert ("an illegal memory access" if fault == "crash" else "wrong: its error is") in found["triton"][0].reason
    assert found["eager"][0].status == "timed"


def test_peers_are_timed_skipped_or_refused_with_the_reason():
    case = Planted("400 x 64", 0.1, rows=400, columns=64)
    found = {r.candidate: r for r in run.run_case(case, bench()) if r.pass_ == "both"}
    assert found["triton"].status == "timed" and found["triton"].error <= OURS
    assert found["sixteenths"].status == "refused" and "it keeps 0.87" in found["sixteenths"].reason
    assert (found["absent"].status, found["absent"].reason) == ("skipped", "is on the moon")
    text = report.terminal(results(*found.values()))
    assert "absent skipped: is on the moon" in text and "refused" in text


def test_parts_are_added_up_by_how_often_they_are_done(monkeypatch):
    monkeypatch.setattr("benchmarks.cases.linear_cross_entropy.chunk_rows", lambda *_: 8)
    case = LinearCrossEntropy("s", rows=20, columns=16, vocabulary=30)
    (parts,) = (r for r in run.run_case(case, bench(not_compiled={case: "not here"})) if r.candidate == "parts")
    assert parts.parameters["parts_us"] == dict.fromkeys(("logits", "rows", "dx", "dw", "sum"), 6.0 * 20 / 8)
    assert (parts.median_us, parts.ours) == (75.0, False)


def test_torch_compile_can_be_timed_in_the_first_case_of_an_op_alone():
    every = cases(Grid(32768, sweeps=False))
    found = session.not_compiled(every, quick=False, first=True)
    firsts = [case for i, case in enumerate(every) if case.op not in {c.op for c in every[:i]}]
    assert set(found.values()) == {"--compile first"} and [case for case in every if case not in found] == firsts
    assert session.not_compiled(every, quick=False, first=False) == {}
    (reason,) = set(session.not_compiled(every, quick=True, first=False).values())
    assert reason == "--quick on a CPU compiles only add_layer_norm and attention"
    records = list(run.run_case(SMALL[0], bench(not_compiled={SMALL[0]: "not here"})))
    assert {(r.status, r.reason) for r in records if r.candidate == "compile"} == {("skipped", "not here")}


def test_models_are_timed_with_the_candidates_asked_for():
    case = ModelCase("gpt1_tiny", 2, 16)
    assert [r.candidate for r in run_model(case, bench(candidates=["plain", "cpu"]))] == ["cpu", "plain"]
    with pytest.raises(ValueError, match="--candidate takes cpu, patched, .*, not nobody"):
        check_candidates(["cpu", "nobody"], [case], False)


@pytest.mark.parametrize("name", ["gpt1_tiny", "bert_tiny"])
def test_every_model_is_held_to_our_reference(name):
    case = ModelCase(name, 2, 16)
    found = {r.candidate: r for r in run_model(case, bench())}
    assert {r.status for c, r in found.items() if "compiled" not in c} == {"timed"}
    assert all(found[name].error < 1e-4 for name in ("plain", "transformers", "patched"))
    assert found["cpu"].tokens == 32
    _, rows = report.table(list(found.values()))
    assert [row[1] for row in rows] == ["cpu", "patched"]


def test_a_wrong_model_is_refused(monkeypatch):
    from benchmarks import plain

    some = [c for c in candidates(ModelCase("gpt1_tiny", 2, 16), on_gpu=False) if c.name in ("cpu", "plain")]
    monkeypatch.setattr("benchmarks.models.candidates", lambda case, on_gpu: some)
    monkeypatch.setattr(plain.MLP, "forward", lambda self, x: self.down(torch.relu(self.up(x))))
    found = {r.candidate: r for r in run_model(ModelCase("gpt1_tiny", 2, 16), bench())}
    assert found["plain"].status == "refused" and found["cpu"].status == "timed"


def test_the_papers_shapes_come_first_and_names_are_checked():
    every = cases(Grid(32768, sweeps=True))
    assert every[: len(cases(Grid(32768)))] == cases(Grid(32768))
    assert len({(c.op, c.shape) for c in every}) == len(every)
    ops = {c.op for c in every}
    assert {c.op for c in every[: len(ops)]} == ops >= SPECS.keys()
    assert {c.vocabulary for c in every if c.op == "linear_cross_entropy"} >= {40478, 40512, 30522, 8192, 131072}
    assert {c.length for c in every if c.op == "attention"} >= {64, 128, 512, 1024, 4096}
    with pytest.raises(ValueError, match="no cases of atention: --op takes adamw, add_layer_norm, attention"):
        cases(Grid(32768), ["atention"])
    with pytest.raises(ValueError, match="no cases of gpt2: --model takes gpt1, bert_base, bert_large here"):
        model_cases(Grid(32768), ["gpt2"])


# Comparison and tables -----------------------------------------------------------------------------------------------


def change(before: Results, after: Results) -> compare.Change:
    (only,) = compare.changes(before, after)
    return only


def test_a_change_within_the_noise_is_none():
    quiet, noisy = record(samples_us=(10.0,) * 9), record(samples_us=(8.0, 9.0, 10.0, 11.0, 12.0))
    faster = record(samples_us=(9.5,) * 9)
    assert change(results(quiet), results(faster)).verdict == "faster"
    assert change(results(faster), results(quiet)).verdict == "slower"
    assert change(results(noisy), results(faster)).verdict == "same"  # half the interquartile range is 10 %
    assert change(results(quiet), results(record(samples_us=(10.09,)))).verdict == "same"  # under 1 %


def test_a_drift_of_the_limit_that_binds_is_noise():
    slow = dataclasses.replace(LIMITS, copies=((1000, 1.0), (16000, 9.0)))
    quiet, slower = record(samples_us=(10.0,)), record(samples_us=(10.8,))
    assert change(results(quiet), results(slower)).verdict == "slower"
    assert change(results(quiet), results(slower, limits=slow.to_json())).verdict == "same"
    by_matrix = (dataclasses.replace(r, bound="matrix") for r in (quiet, slower))
    assert change(results(next(by_matrix)), results(next(by_matrix), limits=slow.to_json())).verdict == "slower"


def test_the_report_of_a_comparison():
    before, gone = record(samples_us=(10.0,)), record(candidate="cuda")
    after = record(samples_us=(5.0,))
    broken = dataclasses.replace(gone, status="refused", reason="wrong", samples_us=())
    text = compare.report(results(before, gone), results(after, broken, machine={"name": "B", "device": "cuda"}))
    assert "-50.0%" in text and "faster" in text
    assert "only before: layer_norm 4 x 8 float32 both cuda (now refused: wrong)" in text
    assert "The machines differ" in text
    loaded = results(after, machine={"name": "C", "device": "cpu", "threads": 1, "cpus": 2, "load": 1.5})
    assert "after was measured on a busy machine" in compare.report(results(before), loaded)
    assert "times are unreliable" in report.head(loaded)
    assert "No change is beyond the noise." in compare.report(results(before), results(before))


def test_ratios_are_the_peer_s_time_over_ours():
    ours, slower = record(samples_us=(4.0,)), record(candidate="cuda", samples_us=(8.0,))
    peer = record(candidate="eager", ours=False, samples_us=(10.0,))
    header, rows = report.table([slower, ours, peer])
    row = dict(zip(header, rows[0], strict=True))
    assert (row["ours"], row["us"], row["x eager"], row["of limit"]) == ("triton", "4.0", "2.50", "75% copy")


def test_tables_are_of_the_newest_results_of_a_gpu(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{tables.START}\nold\n{tables.END}\nb\n")
    assert tables.write(readme, tmp_path) == 0
    assert readme.read_text() == f"a\n{tables.START}\n{tables.END}\nb\n"  # no results, no table
    old, new = record(samples_us=(4.0,)), record(samples_us=(2.0,))
    results(old).write(tmp_path / "gpu" / "1.json")
    results(new, created="2026-02-02T03:04:05+00:00").write(tmp_path / "gpu" / "2.json")
    other = record(name="bias_gelu", samples_us=(7.0,))
    results(old, other, created="2026-01-01T03:04:05+00:00").write(tmp_path / "gpu" / "0.json")
    results(old, created="2026-03-02T03:04:05+00:00", quick=True).write(tmp_path / "gpu" / "3.json")
    results(new, machine={"name": "C", "device": "cpu", "threads": 2, "cpus": 2, "load": 0.0}).write(
        tmp_path / "cpu" / "1.json"
    )
    assert tables.write(readme, tmp_path) == 0
    text = readme.read_text()
    assert "| 2.0 |" in text and "| 7.0 |" in text and "| 4.0 |" not in text and text.endswith(f"{tables.END}\nb\n")
    readme.write_text("no marks")
    assert tables.write(readme, tmp_path) == 2


def test_the_cases_of_pytest_benchmark_run():
    """Runs each case once, without timing."""
    environment = {k: v for k, v in os.environ.items() if k not in ("FASTLM_EMULATE", "TRITON_INTERPRET")}
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "benchmarks",
        "--benchmark-disable",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    ended = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_the_readme_has_the_tables_of_the_committed_results():
    """If this fails: `python -m benchmarks tables --write`."""
    text = (machine.ROOT / "README.md").read_text()
    assert text.partition(tables.START)[2].partition(tables.END)[0].strip() == tables.markdown().strip()
