"""Predictions on streams of lines and in chunks."""

import itertools

import pytest
import torch
from labelled import bpe_with_specials, wordpiece
from runs import one_thread

from fastlm import models
from fastlm.data.corpus import DataError
from fastlm.data.labelled.description import Description
from fastlm.data.labelled.examples import ChoiceExample, SpanExample, TaggedExample, TextExample
from fastlm.inference.heads import task_head
from fastlm.inference.predict import Predictor, examples_of_lines
from fastlm.models import BERTConfig, GPT1Config
from fastlm.run_folder import RunError

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"context": 32, "layers": 1, "hidden": 16, "heads": 2, "intermediate": 16}


def predictor(task: Description, tokenizer=None) -> Predictor:
    tokenizer = tokenizer or wordpiece()
    torch.manual_seed(3)
    config = (BERTConfig if tokenizer.kind == "wordpiece" else GPT1Config)(vocab_size=tokenizer.vocab_size, **SIZES)
    return Predictor(models.build(config, {task.head: task_head(task, 16)}).eval(), tokenizer, task)


def test_lines_of_a_stream():
    one, two, three = examples_of_lines(["a film\n", "\n", '{"text": "a", "id": 7}\n', "[x]"], "classification")
    assert one == TextExample("0", "a film", None, None, "stdin:1")
    assert two == TextExample("7", "a", None, None, "stdin:3") and three.text == "[x]"
    [pair] = examples_of_lines(['{"text": "a", "pair": "b"}'], "regression")
    assert (pair.text, pair.pair) == ("a", "b")
    [choice] = examples_of_lines(['{"context": "a", "choices": ["b", "c"]}'], "choice")
    assert choice == ChoiceExample("0", "a", "", ("b", "c"), None, "stdin:1")
    [span] = examples_of_lines(['{"context": "a", "question": "b"}'], "span")
    assert span == SpanExample("0", "b", "a", (), False, "stdin:1")
    [tagged] = examples_of_lines(["anna is here\n"], "tagging")
    assert tagged == TaggedExample("0", ("anna", "is", "here"), None, 0, "stdin:1")


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("{a film", "classification", "stdin:2: a line that begins with { must be a JSON object"),
        ("a film", "choice", 'stdin:2: a JSON object with "context" and "choices" expected, got \'a film\''),
        ("a film", "span", 'stdin:2: a JSON object with "question" and "context" expected'),
        ('{"pair": "x"}', "classification", 'stdin:2: no column "text"'),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line, kind, message):
    with pytest.raises(DataError) as error:
        list(examples_of_lines(["", line], kind))
    assert str(error.value).startswith(message)


def test_a_stream_is_answered_as_it_comes():
    task = Description("classification", ("bad", "good"), max_length=16)
    read = []
    lines = (read.append(i) or f"film {'good ' * i}" for i in itertools.count())
    answers = predictor(task).predict(examples_of_lines(lines, task.kind), batch_size=1)
    first = next(answers)
    assert read == [0] and first["id"] == "0"
    assert sum(first["probabilities"].values()) == pytest.approx(1) and first["label"] in task.labels


@pytest.mark.parametrize("size", [1, 2, 7])
def test_chunks_do_not_change_predictions(size):
    """Not even where a sentence is read amid its document, which a chunk must not divide."""
    task = Description("tagging", ("O", "B-PER"), max_length=16, document_context=True)
    words = [("anna", "is"), ("in", "rome"), ("a", "good", "film"), ("bob",), ("reads", "it"), ("no",)]
    examples = [TaggedExample(str(i), w, None, i // 4, "x") for i, w in enumerate(words)]
    made = predictor(task)
    given, whole = list(made.predict(examples, batch_size=size)), list(made.predict(examples, batch_size=6))
    assert [p["tags"] for p in given] == [p["tags"] for p in whole]
    for one, other in zip(given, whole, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    alone = next(made.predict([examples[1]]))["probabilities"]
    assert alone != pytest.approx(whole[1]["probabilities"], abs=1e-6)


def test_a_question_with_several_windows_has_one_answer():
    task = Description("span", max_length=16, max_question=4, doc_stride=3, no_answer=True)
    context = "anna wrote the book in paris in 1895 . bob reads it in rome"
    examples = [SpanExample(str(i), "who ?", context[i:], (), False, "x") for i in range(3)]
    answers = list(predictor(task).predict(examples, batch_size=2))
    assert [answer["id"] for answer in answers] == ["0", "1", "2"]
    for example, answer in zip(examples, answers, strict=True):
        spans = [each for each in answer["n_best"] if each["start"] is not None]
        assert len(spans) == 20 and all(example.context.startswith(s["text"], s["start"]) for s in spans)
        assert len({s["text"] for s in spans}) == 20


def test_both_orders_give_one_number():
    task = Description("regression", max_length=16, pairs=True, both_orders=True)
    made = predictor(task, bpe_with_specials())
    pair = TextExample("0", "a film", "the book", None, "x:1")
    swapped = pair._replace(text=pair.pair, pair=pair.text)
    first, second = (next(made.predict([example]))["score"] for example in (pair, swapped))
    assert first == pytest.approx(second, abs=1e-6)
    with pytest.raises(DataError, match="x:1: a pair of texts expected"):
        list(made.predict([pair._replace(pair=None)]))


def test_a_model_without_a_task_is_refused(tmp_path):
    models.build(BERTConfig(vocab_size=wordpiece().vocab_size, **SIZES)).save(tmp_path)
    wordpiece().save(tmp_path / "tokenizer.json")
    with pytest.raises(RunError, match=r"holds no fine-tuned model \(it has no task.json\)"):
        Predictor.load(tmp_path)
