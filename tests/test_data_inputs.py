"""Both papers' input transforms, on token ids."""

from hypothesis import given
from hypothesis import strategies as st
from labelled import bpe_with_specials, wordpiece

from fastlm.data.inputs import Template, best_windows, split_windows, surround, truncate_pair

BERT = Template(first=1, between=2, last=2, pad=0, causal=False, max_length=10)
GPT1 = Template(first=1, between=2, last=3, pad=0, causal=True, max_length=10)


def truncate_one_by_one(a: list[int], b: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Is BERT's procedure: a token of the longer one at a time, of b if both are equal."""
    a, b = list(a), list(b)
    while len(a) + len(b) > limit:
        (a if len(a) > len(b) else b).pop()
    return a, b


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 14))
def test_pairs_are_cut_as_in_berts_code(size_a, size_b, limit):
    a, b = list(range(size_a)), list(range(100, 100 + size_b))
    assert truncate_pair(a, b, limit) == truncate_one_by_one(a, b, limit)


def test_texts_and_pairs():
    assert BERT.text([7, 8]) == ([1, 7, 8, 2], 4, 0, 0)
    assert BERT.text([7, 8], [9]) == ([1, 7, 8, 2, 9, 2], 4, 0, 0)
    assert GPT1.text([7, 8]) == ([1, 7, 8, 3], 4, 3, 0)
    assert GPT1.text([7, 8], [9]) == ([1, 7, 8, 2, 9, 3], 4, 5, 0)


def test_what_does_not_fit_is_cut_and_counted():
    one = GPT1.text([5] * 20)
    assert one.tokens == [1] + [5] * 8 + [3] and (one.row, one.cut) == (9, 12)
    pair = BERT.text([5] * 20, [6] * 2)
    assert pair.tokens == [1] + [5] * 5 + [2] + [6] * 2 + [2] and pair.cut == 15


def test_a_choice_keeps_option_and_question_as_long_as_it_can():
    assert BERT.choice([5, 5], [6], [7]).tokens == [1, 5, 5, 2, 6, 7, 2]  # the question goes with the choice
    assert GPT1.choice([5, 5], [6], [7]).tokens == [1, 5, 5, 6, 2, 7, 3]  # [z; q; $; a]
    assert BERT.choice([5] * 9, [6] * 2, [7] * 3).tokens == [1, 5, 5, 2, 6, 6, 7, 7, 7, 2]
    assert GPT1.choice([5] * 9, [6] * 2, [7] * 3).tokens == [1, 5, 5, 6, 6, 2, 7, 7, 7, 3]
    without_context = GPT1.choice([5] * 9, [6] * 4, [7] * 5)
    assert without_context.tokens == [1, 6, 6, 2, 7, 7, 7, 7, 7, 3] and without_context.cut == 11
    assert BERT.choice([5], [6], [7] * 20).tokens == [1, 2, 7, 7, 7, 7, 7, 7, 7, 2]


def test_a_part_that_is_empty_leaves_its_place():
    assert BERT.choice([], [6], [7]).tokens == [1, 6, 2, 7, 2]
    assert BERT.choice([5], [], [7]).tokens == [1, 5, 2, 7, 2]
    assert GPT1.choice([], [], [7] * 9).tokens == [1, *[7] * 8, 3]


def test_windows_overlap_and_cover():
    assert split_windows(10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert split_windows(10, 4, 9) == [(0, 4), (4, 8), (8, 10)]  # a stride above the room would leave tokens out
    assert split_windows(4, 4, 1) == [(0, 4)]
    assert split_windows(0, 4, 1) == [(0, 0)]


@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 12))
def test_every_token_is_in_its_best_window(count, room, stride):
    windows = split_windows(count, room, stride)
    best = best_windows(windows, count)
    for token, chosen in enumerate(best):
        scores = {
            number: min(token - begin, end - 1 - token) + 0.01 * (end - begin)
            for number, (begin, end) in enumerate(windows)
            if begin <= token < end
        }
        assert chosen == max(scores, key=scores.get)  # the first of equal ones


def test_a_sentence_amid_its_document():
    assert surround([1, 2, 3], [7, 8], [4, 5, 6], 6) == ([2, 3, 7, 8, 4, 5], 2)
    assert surround([], [7, 8], [4, 5, 6], 5) == ([7, 8, 4, 5, 6], 0)
    assert surround([1, 2, 3], [7, 8], [], 5) == ([1, 2, 3, 7, 8], 3)
    assert surround([1], [7, 8, 9], [4], 3) == ([7, 8, 9], 0)


def test_templates_of_tokenizers():
    words, pieces = wordpiece(), bpe_with_specials()
    bert = Template.of(words, 16)
    assert (bert.first, bert.between, bert.last, bert.pad) == tuple(map(words.id, ("[CLS]", "[SEP]", "[SEP]", "[PAD]")))
    gpt1 = Template.of(pieces, 16)
    assert [gpt1.first, gpt1.between, gpt1.last] == [pieces.vocab_size - 3 + i for i in range(3)]
    assert gpt1.causal and not bert.causal


def test_specials_are_appended_once_and_are_no_text():
    pieces = bpe_with_specials()
    assert pieces.with_specials(["_start_"]).hash == pieces.hash
    assert pieces.id("_start_") not in pieces.encode_corpus(["the _start_ film"])[0]


def test_offsets_are_characters_of_the_text_itself():
    text = "Ánna's\u00a0film,  1895"
    ids, offsets = wordpiece().encode_with_offsets([text])[0]
    assert ids == wordpiece().encode_corpus([text])[0]
    assert "".join(text[begin:end] for begin, end in offsets) == "Ánna'sfilm,1895"
