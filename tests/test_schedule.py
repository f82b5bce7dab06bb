"""The schedules against the papers' descriptions and independent formulas."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlm.train.config import SCHEDULES
from fastlm.train.schedule import learning_rate, rate_correction, sequence_length

GPT1 = {"peak": 2.5e-4, "warmup": 2000, "steps": 100_000, "decay": "cosine"}
BERT = {"peak": 1e-4, "warmup": 10_000, "steps": 1_000_000, "decay": "linear"}


@pytest.mark.parametrize("recipe", [GPT1, BERT])
def test_warm_up_is_linear_and_ends_at_the_peak(recipe):
    rates = [learning_rate(step, **recipe) for step in range(recipe["warmup"])]
    assert rates[0] == pytest.approx(recipe["peak"] / recipe["warmup"])
    assert rates[-1] == recipe["peak"]
    assert rates[recipe["warmup"] // 4 - 1] == pytest.approx(recipe["peak"] / 4)
    assert learning_rate(recipe["warmup"], **recipe) == recipe["peak"]


def test_cosine_and_linear_decay_reach_zero_after_the_last_step():
    middle = (2000 + 100_000) // 2
    assert learning_rate(middle, **GPT1) == pytest.approx(GPT1["peak"] / 2)
    assert learning_rate(2000 + 98_000 // 3 * 1, **GPT1) == pytest.approx(
        GPT1["peak"] * (0.5 + 0.5 * math.cos(math.pi * (98_000 // 3) / 98_000))
    )
    assert learning_rate(505_000, **BERT) == pytest.approx(BERT["peak"] / 2)
    for recipe in (GPT1, BERT):
        assert learning_rate(recipe["steps"], **recipe) == 0
        assert 0 < learning_rate(recipe["steps"] - 1, **recipe) < 1e-4 * recipe["peak"]


@given(
    steps=st.integers(1, 500),
    share=st.floats(0, 1),
    decay=st.sampled_from(["cosine", "linear"]),
)
def test_rates_lie_between_zero_and_the_peak_and_fall_after_the_warm_up(steps, share, decay):
    warmup = int(share * steps)
    rates = [learning_rate(s, peak=1.0, warmup=warmup, steps=steps, decay=decay) for s in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_an_unknown_decay_is_named():
    with pytest.raises(ValueError, match="decay.*'square'"):
        learning_rate(5, peak=1.0, warmup=0, steps=10, decay="square")


def gpt1_code(step, steps, peak, warmup=0.002):
    """Computes opt.py's `warmup_linear` of step / steps, with the masks of its tensors as numbers."""
    x = step / steps
    in_warmup = float(x <= warmup)
    return peak * (in_warmup * (x / warmup) + (1 - in_warmup)) * (1 - x)


def bert_code(step, steps, peak, share=0.1):
    """Computes optimization.py's rate: a polynomial decay of power 1, and warm-up that replaces it."""
    decayed = (peak - 0.0) * (1 - min(step, steps) / steps) + 0.0
    warmup = int(steps * share)
    in_warmup = float(step < warmup)
    return (1 - in_warmup) * decayed + in_warmup * (peak * (step / warmup) if warmup else 0.0)


@pytest.mark.parametrize("steps", [1, 7, 140, 343, 5000])
def test_fine_tuning_has_the_rates_of_the_papers_code(steps):
    for step in range(steps):
        gpt1 = {"warmup": 0.002 * steps, "schedule": "warmup-times-decay"}
        bert = {"warmup": int(0.1 * steps), "schedule": "warmup-replaces-decay"}
        for options, expected in ((gpt1, gpt1_code(step, steps, 6.25e-5)), (bert, bert_code(step, steps, 6.25e-5))):
            rate = learning_rate(step, peak=6.25e-5, steps=steps, decay="linear", **options)
            assert rate == pytest.approx(expected, rel=1e-9, abs=0)
    assert learning_rate(0, peak=1.0, steps=steps, decay="linear", **gpt1) == 0  # a fraction of an update is warm-up
    assert learning_rate(0, peak=1.0, steps=steps, decay="linear", **bert) == (0 if steps >= 10 else 1)


def test_berts_rate_falls_where_the_warm_up_ends():
    rates = [learning_rate(s, peak=1.0, warmup=10, steps=100, decay="linear", schedule=SCHEDULES[2]) for s in (9, 10)]
    assert rates == pytest.approx([0.9, 0.9]) and max(rates) == 0.9


@given(steps=st.integers(1, 300), share=st.floats(0, 1), decay=st.sampled_from(["cosine", "linear"]))
def test_no_schedule_leaves_zero_to_the_peak_and_without_warm_up_all_are_the_same(steps, share, decay):
    for step in range(steps):
        options = {"peak": 1.0, "steps": steps, "decay": decay}
        rates = [learning_rate(step, warmup=int(share * steps), schedule=s, **options) for s in SCHEDULES]
        assert all(0 <= rate <= 1 for rate in rates)
        plain = [learning_rate(step, warmup=0, schedule=s, **options) for s in SCHEDULES]
        assert plain == pytest.approx([plain[0]] * 3)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="schedule.*'cyclic'"):
        learning_rate(5, peak=1.0, warmup=0, steps=10, decay="linear", schedule="cyclic")


def test_the_correction_of_the_rate_begins_at_its_first_update_and_ends_at_1():
    assert rate_correction(0, (0.9, 0.999)) == pytest.approx(0.001**0.5 / 0.1)
    assert rate_correction(100_000, (0.9, 0.999)) == pytest.approx(1)


def test_berts_two_phases():
    phases = ((0.9, 128), (0.1, 512))
    lengths = [sequence_length(step, steps=1000, phases=phases) for step in range(1000)]
    assert lengths == [128] * 900 + [512] * 100


@given(steps=st.integers(1, 1000), cuts=st.lists(st.floats(0, 1), max_size=4))
def test_every_step_has_a_phase_whatever_the_fractions(steps, cuts):
    edges = [0.0, *sorted(cuts), 1.0]
    phases = [(b - a, 2 + i) for i, (a, b) in enumerate(itertools.pairwise(edges))]
    lengths = [sequence_length(step, steps=steps, phases=phases) for step in range(steps)]
    assert lengths == sorted(lengths)
    for fraction, length in phases:
        assert abs(lengths.count(length) - fraction * steps) <= 1
