"""Fine-tuning end to end, with tiny models and files: every kind of task with both models, and what can go wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from labelled import save_start, wordpiece, write_jsonl, write_tsv
from runs import losses, one_thread, weights
from test_task_classification import Stopped, stop_at

from fastlm.data.corpus import DataError
from fastlm.data.labelled.config import LabelledConfig
from fastlm.data.labelled.description import TASK_FILE, Description
from fastlm.device import Placement
from fastlm.inference.load import load_pretrained
from fastlm.inference.predict import Predictor
from fastlm.run_folder import RunError
from fastlm.tasks.labelled import labelled_task
from fastlm.train import loop
from fastlm.train.config import TrainConfig
from fastlm.train.trainer import Plan, Trainer

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN = TrainConfig(
    steps=6,
    phases=((1.0, 32),),
    batch_size=4,
    learning_rate=2e-3,
    warmup=0,
    decay="linear",
    validate_every=3,
    validation_batches=0,
    checkpoint_every=4,
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return save_start(tmp_path_factory.mktemp("bert"), "bert_tiny", dropout=0.1, attention_dropout=0.1)


@pytest.fixture(scope="module")
def gpt1(tmp_path_factory) -> Path:
    return save_start(tmp_path_factory.mktemp("gpt1"), "gpt1_tiny", dropout=0.1, embedding_dropout=0.1)


def sentiment(file: Path, count: int) -> Path:
    rows = [
        (f"{'the ' * (i % 5)}film is {'good' if i % 2 else 'bad'} .", "good" if i % 2 else "bad") for i in range(count)
    ]
    return write_tsv(file, [("text", "label"), *rows])


def similarity(file: Path, count: int) -> Path:
    nouns = ("film", "story", "book", "house")
    pairs = [(f"a {nouns[i % 4]} is red", f"the {nouns[i % 3]} is {'red' if i % 2 else 'blue'}") for i in range(count)]
    rows = [(a, b, 5.0 * (a[2:6] == b[4:8]) - i / 100) for i, (a, b) in enumerate(pairs)]
    return write_tsv(file, [("text", "pair", "label"), *rows])


def choices(file: Path, count: int) -> Path:
    records = [
        {
            "context": f"the house is {'red' if i % 2 else 'blue'} .",
            "question": "what is it ?",
            "choices": ["blue", "red"],
        }
        | {"label": i % 2}
        for i in range(count)
    ]
    return write_jsonl(file, records)


def questions(file: Path, count: int, *, impossible: bool = False) -> Path:
    paragraphs = []
    for i in range(count):
        name = ("anna", "bob", "paris", "rome")[i % 4]
        context = f"{'the book is good . ' * (i % 7)}{name} wrote the film in 1895"
        answers = [] if impossible else [{"text": name, "answer_start": context.index(name)}]
        asked = {"id": f"q{i}", "question": "who wrote the film ?", "answers": answers, "is_impossible": impossible}
        paragraphs.append({"context": context, "qas": [asked]})
    file.write_text(json.dumps({"version": "2.0", "data": [{"title": "x", "paragraphs": paragraphs}]}))
    return file


def entities(file: Path, count: int) -> Path:
    sentences = []
    for i in range(count):
        name, place = ("anna", "bob")[i % 2], ("paris", "rome")[i % 3 == 0]
        words = [(name, "B-PER"), *[("reads", "O")] * (i % 4), ("in", "O"), (place, "B-LOC"), (".", "O")]
        sentences.append("".join(f"{word} {tag}\n" for word, tag in words))
    file.write_text("\n".join(sentences))
    return file


CASES = {  # {kind: (the writer of its files, options, the first score)}
    "classification": (sentiment, {"format": "tsv"}, "accuracy"),
    "regression": (similarity, {"format": "tsv", "kind": "regression", "pair_column": "pair"}, "pearson"),
    "choice": (choices, {"format": "jsonl", "kind": "choice"}, "accuracy"),
    "span": (questions, {"format": "squad2", "max_question": 8, "doc_stride": 8}, "squad2_f1"),
    "tagging": (entities, {"format": "conll"}, "entity_f1"),
}


def labelled(folder: Path, kind: str, count: int = 18, **options) -> LabelledConfig:
    write, own, _ = CASES[kind]
    files = {f"{split}_file": str(write(folder / f"{split}.data", count)) for split in ("train", "dev")}
    return LabelledConfig(**{"max_length": 32, **files, **own, **options})


def fine_tune(task, folder: Path, config: TrainConfig = TRAIN, notes: list | None = None) -> dict:
    notify = (notes if notes is not None else []).append
    record = {"labelled": {"format": task.labelled.format}}
    return loop.train(task, config, Placement("cpu", "fp32"), folder, record=record, name="mine", notify=notify)


@pytest.mark.parametrize(
    ("start", "kind"),
    [*(("bert", kind) for kind in CASES), *(("gpt1", k) for k in ("classification", "regression", "choice"))],
)
def test_every_kind_trains_scores_and_predicts(request, tmp_path, start, kind):
    task = labelled_task(request.getfixturevalue(start), labelled(tmp_path, kind))
    steps = 24 if kind == "choice" else 12  # a choice is learned slowly
    result = fine_tune(task, tmp_path / "run", replace(TRAIN, steps=steps, validate_every=steps // 2))
    scores = result["scores"]["mine"]
    assert task.selected_by == CASES[kind][2] and set(task.score_names) <= scores.keys() and len(result["scores"]) >= 3
    assert all(name in baseline for name in task.score_names for baseline in result["scores"].values())
    records = losses(tmp_path / "run")
    first, last = (sum(record["loss"] for record in part) for part in (records[:4], records[-4:]))
    assert last < first and f"validation_{task.selected_by}" in records[-1]
    predictor = Predictor.load(tmp_path / "run", device="cpu")
    assert predictor.task == Description.from_json(json.loads((tmp_path / "run/model" / TASK_FILE).read_text()))
    examples = task.format.read(Path(task.labelled.dev_file))
    if kind != "regression":  # its predictions are almost equal, so the last bits decide on their ranks
        assert predictor.scores(examples) == {name: scores[name] for name in task.score_names}
    for prediction, known, example in zip(predictor.predict(examples), task.predicted, examples, strict=True):
        assert prediction["id"] == example.id and json.loads(json.dumps(prediction)) == prediction
        assert prediction.keys() == known.keys()
        name = {"regression": "score", "tagging": "tags"}.get(
            kind, "probability" if kind == "span" else "probabilities"
        )
        assert prediction[name] == (known[name] if kind == "tagging" else pytest.approx(known[name], abs=1e-4))


def test_it_learns(bert, tmp_path):
    config = replace(TRAIN, steps=40, validate_every=40, learning_rate=3e-3)
    result = fine_tune(labelled_task(bert, labelled(tmp_path, "classification", 40)), tmp_path / "run", config)
    assert result["scores"]["mine"]["accuracy"] == 1.0
    assert result["confusion"] == {"labels": ["bad", "good"], "counts": [[20, 0], [0, 20]]}


@pytest.mark.parametrize("start", ["bert", "gpt1"])
@pytest.mark.parametrize("batching", ["padded", "binned", "packed"])
def test_it_resumes_exactly(request, tmp_path, monkeypatch, start, batching):
    folder = request.getfixturevalue(start)
    made = labelled(tmp_path, "classification", batching=batching)
    config = replace(TRAIN, accumulation=2)
    expected = fine_tune(labelled_task(folder, made), tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Stopped):
            fine_tune(labelled_task(folder, made), tmp_path / "run", config)
    Path(made.train_file).write_text("")  # the run continues with the examples that it began with
    result = fine_tune(labelled_task(folder, made), tmp_path / "run", config)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert result["scores"] == expected["scores"]


@pytest.mark.parametrize(("kind", "options"), [("tagging", {}), ("classification", {"class_weights": "good=7"})])
def test_micro_batches_give_the_update_of_the_whole_batch(tmp_path, kind, options):
    """Also where they have different numbers of tags, or weights of classes."""
    start = save_start(tmp_path / "start", "bert_tiny")
    task = prepared(start, labelled(tmp_path, kind, head_dropout=0.0, **options), tmp_path / "run")
    updates = []
    for accumulation in (1, 4):
        config = replace(TRAIN, batch_size=16, accumulation=accumulation, seed=1)
        with Trainer(task, config, Plan(6, 0, "cpu", "fp32", {})) as trainer:
            updates.append(trainer.update(0).values.tolist())
            weights = {trainer.dataset("train", 32).weight(step) for step in range(4)}
    assert len(weights) > 1 and updates[1] == pytest.approx(updates[0], rel=1e-4)


def test_a_start_that_has_changed_is_refused(bert, tmp_path, monkeypatch):
    start = tmp_path / "start"
    save_start(start, "bert_tiny")
    task = labelled_task(start, labelled(tmp_path, "classification"))
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Stopped):
            fine_tune(task, tmp_path / "run")
    save_start(start, "bert_tiny", initializer_range=0.1)
    with pytest.raises(RunError, match="weights_hash"):
        fine_tune(labelled_task(start, task.labelled), tmp_path / "run")


# GPT-1 ------------------------------------------------------------------------------------------------------------


def prepared(start: Path, made: LabelledConfig, folder: Path, notes: list | None = None):
    task = labelled_task(start, made)
    folder.mkdir(exist_ok=True)
    task.prepare(folder, (notes if notes is not None else []).append)
    return task


def test_the_auxiliary_language_model(gpt1, tmp_path):
    task = prepared(gpt1, labelled(tmp_path, "classification"), tmp_path / "run")
    model = task.build("auto").eval()
    assert model.head_names == ("classes", "lm") and task.loss_names == ("loss", "task_loss", "lm_loss")
    batch = task.dataset("train", 32, 4, 0).batch(0)
    total, own, auxiliary = task.losses(model, batch)
    assert total.item() == pytest.approx((own + auxiliary).item()) and auxiliary > 0
    without = prepared(gpt1, labelled(tmp_path, "classification", lm_weight=0.0), tmp_path / "other")
    assert without.build("auto").head_names == ("classes",) and without.loss_names == ("loss",)
    assert "targets" not in without.dataset("train", 32, 4, 0).batch(0)


def test_new_tokens_are_rows_of_the_embedding_once(gpt1, tmp_path):
    made = labelled(tmp_path, "classification")
    before = load_pretrained(gpt1, {})[0]
    fine_tune(labelled_task(gpt1, made), tmp_path / "run")
    model, tokenizer = load_pretrained(tmp_path / "run")
    assert model.config.vocab_size == before.config.vocab_size + 3 == tokenizer.vocab_size
    again = prepared(tmp_path / "run", made, tmp_path / "again")
    assert again.build("auto").config.vocab_size == tokenizer.vocab_size
    assert again.tokenizer.hash == tokenizer.hash


def test_orders(gpt1, bert, tmp_path):
    made = labelled(tmp_path, "regression")
    assert prepared(gpt1, made, tmp_path / "a").description.both_orders
    assert not prepared(bert, made, tmp_path / "b").description.both_orders
    assert not prepared(gpt1, replace(made, orders="one"), tmp_path / "c").description.both_orders
    with pytest.raises(ValueError, match="orders: both is for pairs"):
        prepared(gpt1, labelled(tmp_path, "classification", orders="both"), tmp_path / "d")


@pytest.mark.parametrize("kind", ["span", "tagging"])
def test_what_needs_both_sides_is_refused(gpt1, tmp_path, kind):
    with pytest.raises(DataError, match=f"kind: {kind} needs a model that reads to both sides"):
        prepared(gpt1, labelled(tmp_path, kind), tmp_path / "run")


# Start ------------------------------------------------------------------------------------------------------------


def test_the_trunk_is_pretrained_and_the_head_is_fresh(bert, tmp_path):
    made = labelled(tmp_path, "classification")
    task = prepared(bert, made, tmp_path / "a")
    pretrained = load_pretrained(bert, {})[0].state_dict()
    torch.manual_seed(5)
    model = task.build("auto")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in pretrained.items())
    assert 0.015 < model.classes.weight.std() < 0.025 and not model.classes.bias.any()
    scratch = prepared(bert, replace(made, from_scratch=True), tmp_path / "b").build("auto")
    assert scratch.config == model.config
    assert not torch.equal(scratch.embedding.word, model.embedding.word)


def test_an_input_longer_than_the_context_is_refused(bert, tmp_path):
    with pytest.raises(ValueError, match="max_length: at most 64, the context of .*bert0, expected, got 65"):
        prepared(bert, labelled(tmp_path, "classification", max_length=65), tmp_path / "run")


def test_the_head_has_what_the_options_say(bert, tmp_path):
    made = labelled(tmp_path, "classification", head_bias=False, head_dropout=0.5, class_weights="bad=2")
    task = prepared(bert, made, tmp_path / "run")
    head = task.build("auto").classes
    assert head.bias is None and head.dropout.dropout == 0.5 and head.class_weights.tolist() == [2.0, 1.0]
    assert Predictor  # the description builds the same head: see test_every_kind_trains_scores_and_predicts


# Bad data ---------------------------------------------------------------------------------------------------------


def with_rows(folder: Path, train: list[tuple], dev: list[tuple], **options) -> LabelledConfig:
    files = {"train": train, "dev": dev}
    written = {f"{n}_file": str(write_tsv(folder / n, [("text", "label"), *rows])) for n, rows in files.items()}
    return LabelledConfig(**{"format": "tsv", "max_length": 32, **written, **options})


GOOD, BAD = ("the film is good", "good"), ("the film is bad", "bad")


@pytest.mark.parametrize(
    ("train", "dev", "options", "error", "message"),
    [
        (
            [GOOD] * 3,
            [GOOD],
            {},
            DataError,
            "train: at least two classes expected, all 3 examples have the label 'good'",
        ),
        ([GOOD, BAD], [("a", "fine")], {}, DataError, "dev:2: unknown label 'fine'; the labels are bad, good"),
        ([GOOD, BAD], [GOOD], {}, DataError, "train:3: the label 'bad' is in no example of .*dev"),
        ([GOOD, BAD], [GOOD, BAD], {"class_weights": "fine=2"}, ValueError, "class_weights: labels of bad, good"),
    ],
)
def test_bad_data_is_one_sentence_with_its_place(bert, tmp_path, train, dev, options, error, message):
    with pytest.raises(error, match=message):
        fine_tune(labelled_task(bert, with_rows(tmp_path, train, dev, **options)), tmp_path / "run")


def test_class_weights_are_for_classes(bert, tmp_path):
    with pytest.raises(ValueError, match="class_weights: they are for classification, not for span"):
        labelled_task(bert, labelled(tmp_path, "span", class_weights="balanced"))
    made = with_rows(tmp_path, [GOOD] * 3 + [BAD], [GOOD, BAD], class_weights="balanced")
    assert prepared(bert, made, tmp_path / "run").class_weights() == [2.0, pytest.approx(4 / 6)]


def test_a_missing_file_is_named(bert, tmp_path):
    made = replace(labelled(tmp_path, "classification"), dev_file=str(tmp_path / "none.tsv"))
    with pytest.raises(DataError, match=r"dev_file: a file of labelled examples expected, got '.*none.tsv'"):
        fine_tune(labelled_task(bert, made), tmp_path / "run")


def test_long_inputs_are_reported_in_one_sentence_per_file(bert, tmp_path):
    notes = []
    prepared(bert, labelled(tmp_path, "classification", max_length=8), tmp_path / "run", notes)
    assert [" inputs were longer than max_length 8 and were cut" in note for note in notes] == [False, True, True]


def test_answers_that_cannot_be_learned_and_long_questions_are_reported(bert, tmp_path):
    context = f"anna \u200b wrote {'a film ' * 20}"
    answers = [{"text": "\u200b", "answer_start": 5}], [{"text": context[7:], "answer_start": 7}]
    asked = [{"id": f"q{i}", "question": "who wrote it ?", "answers": given} for i, given in enumerate(answers)]
    paragraph = {"context": context, "qas": asked}
    file = tmp_path / "lost.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    made, notes = labelled(tmp_path, "span", format="squad1", train_file=str(file), max_question=3), []
    prepared(bert, replace(made, dev_file=str(file)), tmp_path / "run", notes)
    assert notes[1:4] == [
        f"{file}: answers not learned, as no token stands for their characters: 1",
        f"{file}: answers learned as none, as no window holds all of them: 1",
        f"{file}: questions longer than max_question 3, and cut: 2",
    ]


# Scores at the edge -----------------------------------------------------------------------------------------------


def test_a_dev_set_of_one_class_has_matthews_0(bert, tmp_path):
    """Training refuses such a dev set, but any file can be scored."""
    rows = [("s", "0" if i % 2 else "1", "", "the film is good" if i % 2 else "bad") for i in range(12)]
    file = write_tsv(tmp_path / "train.tsv", rows)
    made = LabelledConfig(format="cola", train_file=str(file), dev_file=str(file), max_length=32)
    task = labelled_task(bert, made)
    fine_tune(task, tmp_path / "run")
    one_class = task.format.read(write_tsv(tmp_path / "one.tsv", [row for row in rows if row[1] == "1"]))
    assert Predictor.load(tmp_path / "run", device="cpu").scores(one_class)["matthews"] == 0.0


def test_a_threshold_is_kept_with_the_model_where_questions_have_no_answer(bert, tmp_path):
    made = labelled(tmp_path, "span", 8)
    made = replace(made, dev_file=str(questions(tmp_path / "none.json", 6, impossible=True)))
    result = fine_tune(labelled_task(bert, made), tmp_path / "run")
    scores = result["scores"]["mine"]
    assert scores["squad2_f1"] == scores["squad2_exact"] == 1.0  # never to answer is right
    threshold = json.loads((tmp_path / "run/model" / TASK_FILE).read_text())["null_threshold"]
    assert threshold == scores["null_threshold"]
    predictor = Predictor.load(tmp_path / "run", device="cpu")
    answers = list(predictor.predict(labelled_task(bert, made).format.read(Path(made.dev_file))))
    assert all(answer["answer"] == "" and answer["null_odds"] > threshold for answer in answers)


def test_words_that_do_not_fit_or_have_no_piece_are_scored_as_outside(bert, tmp_path):
    made = labelled(tmp_path, "tagging", max_length=8)
    task = prepared(bert, made, tmp_path / "run")
    example = task.examples[0]._replace(words=("anna", "\u200b", *["reads"] * 9), tags=("B-PER",) * 11)
    predictor = Predictor(task.build("auto").eval(), task.tokenizer, task.description)
    [prediction] = predictor.predict([example])
    read = len(wordpiece().encode_corpus(["reads"])[0])
    fitting = 2 + -(-(6 - len(wordpiece().encode_corpus(["anna"])[0])) // read)
    assert prediction["tags"][1] == "O" and prediction["probabilities"][1] is None
    assert prediction["probabilities"][0] > 0 and prediction["probabilities"][fitting - 1] > 0
    assert prediction["tags"][fitting:] == ["O"] * (11 - fitting) and set(prediction["probabilities"][fitting:]) == {
        None
    }
