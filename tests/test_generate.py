"""Sampling: temperature, top-k and top-p against their definitions, and their errors."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastlm.data.tokenizer import _readable
from fastlm.inference.generate import _pieces, continue_tokens, filter_logits, generate_text

PLAIN = {"temperature": 1.0, "top_k": None, "top_p": None}


class Successor(nn.Module):
    """A model whose likeliest next token is the last one plus 1. Records the lengths of the windows that it sees."""

    def __init__(self, vocab_size=7, context=5, sharpness=3.0):
        super().__init__()
        self.config = SimpleNamespace(context=context)
        self.scale = nn.Parameter(torch.tensor(sharpness))
        self.vocab_size, self.seen = vocab_size, []

    def forward(self, tokens):
        assert not self.training
        self.seen.append(tokens.shape[1])
        return SimpleNamespace(hidden=tokens)

    def logits(self, head, hidden):
        assert head == "lm"
        return self.scale * nn.functional.one_hot((hidden + 1) % self.vocab_size, self.vocab_size).float()


def kept(logits, **options):
    return filter_logits(torch.tensor(logits), **{**PLAIN, **options}).isfinite().nonzero().flatten().tolist()


def test_top_k_keeps_the_k_likeliest():
    assert kept([0.0, 3.0, 1.0, 2.0], top_k=2) == [1, 3]
    assert kept([0.0, 3.0, 1.0, 2.0], top_k=9) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert kept(logits, top_p=0.4) == [0]
    assert kept(logits, top_p=0.6) == [0, 1]
    assert kept(logits, top_p=0.9) == [0, 1, 2]
    assert kept(logits, top_p=1.0) == [0, 1, 2, 3]


def test_top_p_counts_what_top_k_left():
    # top_k leaves two tokens; the first has 0.5 / 0.8 = 0.625 of their probability.
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert kept(logits, top_k=2, top_p=0.62) == [0]
    assert kept(logits, top_k=2, top_p=0.63) == [0, 1]


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=20),
    k=st.integers(1, 25),
    p=st.floats(0.01, 1.0),
    temperature=st.floats(0.1, 5.0),
)
def test_what_is_kept_is_never_empty_nor_less_likely_than_what_is_not(logits, k, p, temperature):
    result = filter_logits(torch.tensor(logits), temperature=temperature, top_k=k, top_p=p)
    finite = result.isfinite()
    assert finite.any()
    original = torch.tensor(logits)
    torch.testing.assert_close(result[finite], original[finite] / temperature)
    if not finite.all():
        assert original[finite].min() >= original[~finite].max()


def test_temperature_zero_takes_the_likeliest_and_the_window_never_exceeds_the_context():
    model = Successor().train()
    assert continue_tokens(model, [2], 10, temperature=0) == [3, 4, 5, 6, 0, 1, 2, 3, 4, 5]
    assert model.seen == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5]


def test_draws_follow_the_softmax():
    model, generator = Successor(sharpness=2.0), torch.Generator().manual_seed(0)
    drawn = [continue_tokens(model, [0], 1, generator=generator)[0] for _ in range(3000)]
    share = drawn.count(1) / len(drawn)
    expected = torch.tensor([0.0, 2, 0, 0, 0, 0, 0]).softmax(0)[1].item()
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 3000) ** 0.5


def test_the_same_seed_gives_the_same_text_and_another_one_another():
    def draw(seed):
        return continue_tokens(Successor(sharpness=0.5), [0], 30, generator=torch.Generator().manual_seed(seed))

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1.0}, r"temperature: 0 \(which takes the likeliest token\) or at least 1e-06 expected"),
        ({"temperature": float("nan")}, "temperature: 0 .* expected, got nan"),
        ({"temperature": float("inf")}, "temperature: 0 .* expected, got inf"),
        ({"temperature": 1e-42}, "temperature: 0 .* or at least 1e-06 expected, got 1e-42"),
        ({"top_k": 0}, "top_k: at least 1 expected, got 0"),
        ({"top_p": 0.0}, "top_p: above 0 and at most 1 expected"),
        ({"top_p": 1.5}, "top_p: above 0 and at most 1 expected"),
    ],
)
def test_options_that_make_no_sense_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        continue_tokens(Successor(), [0], 1, **options)


def test_logits_that_the_temperature_makes_infinite_are_named():
    with pytest.raises(ValueError, match="model: its logits must be finite numbers, got inf"):
        continue_tokens(Successor(sharpness=1e35), [0], 1, temperature=1e-6)


def test_there_must_be_a_token_to_start_from():
    with pytest.raises(ValueError, match="tokens: at least one"):
        continue_tokens(Successor(), [], 1)


class Spelled:
    """A tokenizer whose tokens are the words of a sentence with quotes, an apostrophe and a number, and a newline."""

    words = ("she", "said", '"', "it", "'", "s", "10", ",", "000", '"', ".", "\n", "_", "no", "_", "-", "one")

    def encode(self, text):
        return [self.words.index(text)]

    def decode(self, ids, *, unfinished=False):
        return _readable(" ".join(self.words[i] for i in ids), unfinished)


def test_the_pieces_of_a_text_come_early_and_make_the_whole_text():
    model = Successor(vocab_size=len(Spelled.words))
    pieces = list(_pieces(model, Spelled(), "she", len(Spelled.words) - 1, temperature=0))
    assert "".join(pieces) == 'she said "it\'s 10,000".\n_no_-one'
    assert "".join(pieces) == generate_text(model, Spelled(), "she", len(Spelled.words) - 1, temperature=0)
    assert pieces[:3] == ["she", " said", ""]  # what a quotation mark changes waits for its partner
    assert sum(map(bool, pieces)) >= 4


_TEXT = st.lists(st.sampled_from([*Spelled.words, "foo", "(", ")", "—", "“", "”", "<unk>", "?", "ll"]), max_size=14)


@given(words=_TEXT, ends=st.lists(st.booleans(), min_size=14, max_size=14))
@settings(deadline=None, max_examples=300)
def test_what_is_settled_stays(words, ends):
    """A word that does not end continues with the next one, as subwords do."""
    parts = [word + " " * end for word, end in zip(words, ends, strict=False)]
    whole = _readable("".join(parts).rstrip(" "))
    for count in range(len(parts) + 1):
        begun = _readable("".join(parts[:count]).rstrip(" "), unfinished=True)
        assert whole.startswith(begun)
