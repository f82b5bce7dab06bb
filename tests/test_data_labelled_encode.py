"""Labelled examples become sequences, targets and places."""

from pathlib import Path

import numpy as np
import pytest
from labelled import bpe_with_specials, wordpiece

from fastlm.data.corpus import DataError
from fastlm.data.labelled.description import Description
from fastlm.data.labelled.encode import Encodings, encode
from fastlm.data.labelled.examples import Answer, ChoiceExample, SpanExample, TaggedExample, TextExample
from fastlm.data.labelled.stored import read_examples, write_examples

FILM = "the film is good"
CLASSES = Description("classification", ("bad", "good"), max_length=12)
SPAN = Description("span", max_length=16, max_question=4, doc_stride=3)
TAGS = Description("tagging", ("O", "B-PER"), max_length=8)


def sequences(encodings: Encodings, made_with=None) -> list[str]:
    """Returns each sequence as text, with its special tokens."""
    decode = (made_with or wordpiece())._tokenizer.id_to_token
    tokens = encodings.tokens.tolist()
    parts = zip(encodings.starts[:-1], encodings.starts[1:], strict=True)
    return [" ".join(decode(t) for t in tokens[begin:end]) for begin, end in parts]


def text(label, pair=None, where="x.tsv:2"):
    return TextExample("0", FILM, pair, label, where)


def span(context, *answers, question="who wrote it ?"):
    given = tuple(Answer(answer, context.index(answer)) for answer in answers)
    return SpanExample("q", question, context, given, not given, "x.json:1")


# Texts and choices ------------------------------------------------------------------------------------------------


def test_classification():
    made = encode([text("good"), text("bad")], wordpiece(), CLASSES, targets=True)
    assert sequences(made) == ["[CLS] the film is good [SEP]"] * 2
    assert made.targets["labels"].tolist() == [1, 0] and made.rows.tolist() == [0, 0] and len(made) == 2
    assert made.second.tolist() == [6, 6]
    assert encode([text(None)], wordpiece(), CLASSES, targets=False).targets == {}


def test_special_tokens_in_a_text_are_characters():
    example = TextExample("0", "[SEP] film", None, "good", "x")
    tokens = encode([example], wordpiece(), CLASSES, targets=False).tokens.tolist()
    assert tokens.count(wordpiece().id("[SEP]")) == 1


def test_both_orders():
    task = Description("regression", max_length=16, both_orders=True)
    made = encode([text(2.5, "no story")], bpe_with_specials(), task, targets=True)
    assert sequences(made, bpe_with_specials()) == [
        "_start_ the</w> film</w> is</w> good</w> _delimiter_ no</w> story</w> _classify_",
        "_start_ no</w> story</w> _delimiter_ the</w> film</w> is</w> good</w> _classify_",
    ]
    assert made.per_item == 2 and len(made) == 1 and made.rows.tolist() == [8, 8]
    assert made.targets["scores"].dtype == np.float32 and made.targets["scores"].tolist() == [2.5]


def test_an_unknown_label_is_named_with_its_place():
    with pytest.raises(DataError, match=r"^x.tsv:2: unknown label 'fine'; the labels are bad, good$"):
        encode([text("fine")], wordpiece(), CLASSES, targets=True)


def test_pairs_and_single_texts_do_not_mix():
    task = Description("classification", ("bad", "good"), pairs=True)
    with pytest.raises(DataError, match="^x.tsv:2: a pair of texts expected"):
        encode([text("good")], wordpiece(), task, targets=True)


def test_cut_inputs_are_counted_in_one_sentence():
    examples = [text("good"), TextExample("1", FILM * 3, None, "bad", "x")]
    made = encode(examples, wordpiece(), Description("classification", ("bad", "good"), max_length=8), targets=True)
    lost = made.cut.tolist()[1]
    assert made.cut.tolist()[0] == 0 and lost > 0 and made.lengths.tolist() == [6, 8]
    assert made.cut_warning("a.tsv", 8) == (
        f"a.tsv: 1 of 2 inputs was longer than max_length 8 and was cut, by {lost} tokens on average"
    )
    assert encode([text("good")], wordpiece(), CLASSES, targets=True).cut_warning("a.tsv", 12) is None


def test_choices():
    task = Description("choice", max_length=16)
    example = ChoiceExample("0", "the house is red", "is it blue ?", ("no", "it is"), 1, "x.jsonl:1")
    made = encode([example], wordpiece(), task, targets=True)
    assert sequences(made) == [
        "[CLS] the house is red [SEP] is it blue ? no [SEP]",
        "[CLS] the house is red [SEP] is it blue ? it is [SEP]",
    ]
    assert made.per_item == 2 and made.targets["choice_labels"].tolist() == [1]
    other = example._replace(choices=("no", "it is", "a"), where="x.jsonl:2")
    with pytest.raises(DataError, match="^x.jsonl:2: 2 choices expected, as in x.jsonl:1, got 3$"):
        encode([example, other], wordpiece(), task, targets=True)


# Spans ------------------------------------------------------------------------------------------------------------

CONTEXT = "anna wrote the book in paris in 1895 . bob reads it in rome"  # 13 words, of one piece or several


def windows_of(example, task=SPAN):
    """Returns (the window's context, the answer that its targets stand for) for each window."""
    made = encode([example], wordpiece(), task, targets=True, places=True)
    offsets, found = made.places["offsets"], []
    for item in range(len(made)):
        begin, end, second = made.places["begin"][item], made.places["end"][item], made.second[item]
        start, last = (made.targets[name][item] for name in ("span_starts", "span_ends"))
        answer = None
        if start > 0:
            at, to = offsets[start - second + begin][0], offsets[last - second + begin][1]
            answer = example.context[at:to]
            tokens = made.tokens[made.starts[item] : made.starts[item + 1]].tolist()
            assert tokens[start : last + 1] == wordpiece().encode_corpus([answer])[0]
        found.append((example.context[offsets[begin][0] : offsets[end - 1][1]], answer))
    return made, found


def test_an_answer_at_token_0_and_at_a_windows_end():
    made, found = windows_of(span(CONTEXT, "anna"))
    assert found[0][1] == "anna" and made.targets["span_starts"][0] == made.second[0] and found[1][1] is None
    last_of_first = found[0][0].split()[-1]
    made, found = windows_of(span(CONTEXT, last_of_first))
    assert found[0][0].endswith(last_of_first) and found[0][1] == last_of_first
    assert made.targets["span_ends"][0] == made.lengths[0] - 2  # before [SEP]
    made, found = windows_of(span(CONTEXT, "rome"))
    assert [answer for _, answer in found] == [None] * (len(found) - 1) + ["rome"]


def test_an_answer_over_a_seam_is_in_the_windows_that_hold_all_of_it():
    answer = "paris in 1895"
    _, found = windows_of(span(CONTEXT, answer))
    assert len(found) > 2
    for window, target in found:
        assert target == (answer if answer in window else None)
    assert {target for _, target in found} == {answer, None}


def test_every_position_of_an_answer_is_found_again():
    words = CONTEXT.split()
    for first in range(len(words)):
        for last in range(first, min(first + 3, len(words))):
            start = len(" ".join([*words[:first], ""]))
            answer = Answer(" ".join(words[first : last + 1]), start)
            example = SpanExample("q", "who ?", CONTEXT, (answer,), False, "x")
            _, found = windows_of(example, Description("span", max_length=64, max_question=4))
            assert found == [(CONTEXT, answer.text)]


def test_an_answer_inside_a_word_gets_the_fewest_pieces_that_cover_it():
    context = "the reads-film"
    _, found = windows_of(span(context, "film"), Description("span", max_length=64, max_question=4))
    assert found == [(context, "film")]


def test_no_answer_is_at_cls_and_one_without_pieces_is_ignored():
    made, _ = windows_of(span(CONTEXT))
    assert set(made.targets["span_starts"]) == set(made.targets["span_ends"]) == {0}
    lost = SpanExample("q", "who ?", "anna \u200b wrote", (Answer("\u200b", 5),), False, "x")
    made = encode([lost], wordpiece(), SPAN, targets=True)
    assert made.targets["span_starts"].tolist() == made.targets["span_ends"].tolist() == [-100]


def test_a_context_without_pieces_has_one_window():
    made = encode([SpanExample("q", "who ?", "\u200b", (), True, "x")], wordpiece(), SPAN, targets=True, places=True)
    assert len(made) == 1 and made.places["begin"].tolist() == made.places["end"].tolist() == [0]
    assert made.places["offsets"].shape == (0, 2)


def test_a_long_question_is_cut_and_there_must_be_room_for_a_context():
    made = encode([span(CONTEXT, question="who wrote the book in paris ?")], wordpiece(), SPAN, targets=True)
    assert made.second[0] == 4 + 2 and made.cut[0] == 3
    with pytest.raises(DataError, match="max_length: at least 20 expected"):
        encode([span(CONTEXT)], wordpiece(), Description("span", max_length=19, max_question=16), targets=True)


# Tags -------------------------------------------------------------------------------------------------------------


def tagged(words, tags=None, document=0):
    return TaggedExample("0", tuple(words), None if tags is None else tuple(tags), document, "x.txt:1")


def test_a_words_tag_is_at_its_first_piece():
    pieces = wordpiece().encode_corpus(["zqx"])[0]
    assert len(pieces) == 3
    made = encode([tagged(["zqx", "is"], ["B-PER", "O"])], wordpiece(), TAGS, targets=True, places=True)
    assert made.targets["tag_targets"].tolist() == [-100, 1, -100, -100, 0, -100]
    assert made.places["word_at"].tolist() == [1, 4] and made.places["word_starts"].tolist() == [0, 2]


def test_words_without_pieces_and_words_that_do_not_fit_have_no_place():
    words = ["\u200b", "is", "zqx", "zqx", "good"]
    made = encode([tagged(words, ["O"] * 5)], wordpiece(), TAGS, targets=True, places=True)
    assert made.places["word_at"].tolist() == [-1, 1, 2, 5, -1] and made.lengths.tolist() == [8]
    assert made.cut.tolist() == [2]
    assert [t for t in made.targets["tag_targets"].tolist() if t >= 0] == [0, 0, 0]


def test_a_tag_that_training_lacks_is_an_error():
    with pytest.raises(DataError, match="x.txt:1: unknown label 'B-LOC'"):
        encode([tagged(["rome"], ["B-LOC"])], wordpiece(), TAGS, targets=True)


def test_a_sentence_in_its_document():
    task = Description("tagging", ("O",), max_length=9, document_context=True)
    examples = [
        tagged(["the", "film"]),
        tagged(["is", "good"]),
        tagged(["no", "story", "is"]),
        tagged(["bad"], None, 1),
    ]
    made = encode(examples, wordpiece(), task, targets=False, places=True)
    assert sequences(made) == [
        "[CLS] the film is good no story is [SEP]",
        "[CLS] the film is good no story is [SEP]",
        "[CLS] the film is good no story is [SEP]",
        "[CLS] bad [SEP]",
    ]
    assert made.places["word_at"].tolist() == [1, 2, 3, 4, 5, 6, 7, 1]


def test_predictions_with_a_target_are_counted():
    tags = encode([tagged(["zqx", "is"], ["O"] * 2), tagged(["\u200b"], ["O"])], wordpiece(), TAGS, targets=True)
    assert tags.predicted.tolist() == [2, 0]
    lost = SpanExample("q", "who ?", "anna \u200b wrote", (Answer("\u200b", 5),), False, "x")
    assert encode([lost, span("anna", "anna")], wordpiece(), SPAN, targets=True).predicted.tolist() == [0, 1]
    assert encode([text("good")], wordpiece(), CLASSES, targets=True).predicted.tolist() == [1]


# Files ------------------------------------------------------------------------------------------------------------


def test_encodings_and_examples_are_stored(tmp_path: Path):
    made = encode([span(CONTEXT, "anna"), span(CONTEXT)], wordpiece(), SPAN, targets=True)
    made.save(tmp_path / "train.npz")
    read = Encodings.load(tmp_path / "train.npz")
    assert read.per_item == 1 and read.targets.keys() == made.targets.keys()
    for name in ("tokens", "starts", "second", "rows", "example", "cut"):
        assert np.array_equal(getattr(read, name), getattr(made, name)), name
    for kind, example in {
        "classification": text("good", "a"),
        "regression": text(1.5),
        "choice": ChoiceExample("0", "a", "", ("b", "c"), 0, "x"),
        "span": span(CONTEXT, "anna", "bob"),
        "tagging": tagged(["a\u2028"], ["O"]),
    }.items():
        write_examples(tmp_path / "x", [example, example])
        assert read_examples(tmp_path / "x", kind) == [example, example]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"pickle"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"train.npz: not the encoded examples of a run"):
        Encodings.load(tmp_path / "train.npz")
