"""Fine-tuned models for transformers and back: every class, its labels, and what it has no class for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import corpora
import pytest
import torch
import transformers
from parity import assert_same, installed, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastlm.data.inputs import GPT1_SPECIALS, Template
from fastlm.data.labelled.description import Description
from fastlm.inference.heads import task_head
from fastlm.inference.load import load_pretrained
from fastlm.integrations import transformers as hf
from fastlm.models import BERT, GPT1, BERTConfig, GPT1Config, Model, pretraining_heads
from fastlm.nn import Head, SequenceLMHead

SIZES = {"context": 24, "layers": 2, "hidden": 32, "heads": 2}
BERT_SIZES = BERTConfig(vocab_size=600, intermediate=64, gelu="none", **SIZES)
GPT1_SIZES = GPT1Config(vocab_size=603, intermediate=128, **SIZES)
TASKS = {  # their class, and what the model does; labels are not in alphabetic order
    "classification": ("BertForSequenceClassification", Description("classification", ("no", "yes", "maybe"))),
    "regression": ("BertForSequenceClassification", Description("regression")),
    "choice": ("BertForMultipleChoice", Description("choice", head_dropout=0.2)),
    "tagging": ("BertForTokenClassification", Description("tagging", ("O", "B-LOC", "I-LOC"), document_context=True)),
    "span": ("BertForQuestionAnswering", Description("span", null_threshold=-1.5, doc_stride=16)),
}
GPT1_TASKS = {
    "classification": Description("classification", ("no", "yes"), head_bias=False),
    "regression": Description("regression", head_bias=False),
    "choice": Description("choice"),
}
BATCH, LENGTH = 4, 13
LENGTHS = torch.tensor([LENGTH, 9, 5, 2], dtype=torch.int32)
FIRST = torch.arange(BATCH) * LENGTH  # the rows of [CLS]
VALID = torch.arange(LENGTH) < LENGTHS[:, None]
TOKENS = torch.randint(5, 600, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1)).where(VALID, 0)
SEGMENTS = (torch.arange(LENGTH) > 4).long().expand(BATCH, -1).where(VALID, 0)


def fine_tuned(config: BERTConfig | GPT1Config, task: Description | None, **others: Head) -> Model:
    heads = dict(others) if task is None else {**others, task.head: task_head(task, config.hidden)}
    model = (BERT if isinstance(config, BERTConfig) else GPT1)(config, heads)
    randomise(model)
    return model.eval()


def bpe():
    return corpora.tokenizer("bpe").with_specials(GPT1_SPECIALS)


def theirs_from(folder: Path, auto: str = "AutoModel", **options) -> nn.Module:
    """Loads their model, and asserts that every tensor was used, none is missing, and none is left without values."""
    theirs, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    assert not any(t.is_meta for t in (*theirs.parameters(), *theirs.buffers()))
    return theirs.double().eval()


def assert_equal(ours: Model, others: Model, *, but: tuple[str, ...] = ()) -> None:
    expected = dict(ours.named_parameters())
    assert list(expected) == [name for name, _ in others.named_parameters()]
    for name, p in others.named_parameters():
        assert not p.is_meta
        assert name.startswith(but) or torch.equal(p, expected[name]), name


@torch.no_grad()
def outputs(model: Model, task: Description) -> list[Tensor]:
    hidden = model(TOKENS, SEGMENTS, LENGTHS).hidden
    if task.kind == "choice":
        return [model.logits(task.head, hidden, FIRST.view(2, 2))]
    if task.kind == "tagging":
        return [model.logits(task.head, hidden)[VALID]]
    if task.kind == "span":
        return [x[VALID] for x in model.logits(task.head, hidden)]
    logits = model.logits(task.head, hidden, FIRST)
    return [logits[:, None] if task.kind == "regression" else logits]


@torch.no_grad()
def outputs_of(theirs: nn.Module, kind: str) -> list[Tensor]:
    shape = (2, 2, LENGTH) if kind == "choice" else (BATCH, LENGTH)
    given = {"input_ids": TOKENS, "token_type_ids": SEGMENTS, "attention_mask": VALID.long()}
    result = theirs(**{name: x.view(shape) for name, x in given.items()})
    if kind == "span":
        return [result.start_logits[VALID], result.end_logits[VALID]]
    return [result.logits[VALID] if kind == "tagging" else result.logits]


@pytest.mark.parametrize("kind", TASKS)
def test_bert_of_each_kind_is_the_same_there_and_back(kind, tmp_path):
    name, task = TASKS[kind]
    ours = fine_tuned(BERT_SIZES, task)
    hf.save_pretrained(ours, tmp_path, corpora.tokenizer("wordpiece"), task=task)
    auto = f"AutoModelFor{name.removeprefix('BertFor')}"
    theirs = theirs_from(tmp_path, auto, attn_implementation="eager")
    assert type(theirs).__name__ == name
    if task.labels:
        assert theirs.config.id2label == dict(enumerate(task.labels))
        assert theirs.config.label2id == {label: i for i, label in enumerate(task.labels)}
    problems = {"classification": "single_label_classification", "regression": "regression"}
    assert theirs.config.problem_type == problems.get(kind)
    assert kind == "span" or theirs.config.classifier_dropout == task.head_dropout
    back = hf.from_pretrained(tmp_path)
    assert back.task == task and back.left_out == () and back.model.head_names == (task.head,)
    no_pooler = kind in ("tagging", "span")  # nor do their classes have it
    assert back.fresh == (("pooler.weight", "pooler.bias") if no_pooler else ())
    assert_equal(ours, back.model, but=("pooler.",) if no_pooler else ())
    for ours_now in (ours, back.model):
        for x, y in zip(outputs(ours_now.double(), task), outputs_of(theirs, kind), strict=True):
            assert_same(kind, x, y)


@pytest.mark.parametrize("kind", TASKS)
def test_saved_by_transformers_it_is_the_same_model_here(kind, tmp_path):
    name, task = TASKS[kind]
    config = transformers.BertConfig(
        **hf.export_config(BERT_SIZES), num_labels=len(task.labels) or 1 + (kind == "span")
    )
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
    theirs = getattr(transformers, name)(config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    loaded = hf.from_pretrained(tmp_path)
    assert loaded.task == Description(kind, task.labels, max_length=24, head_dropout=0.1)
    assert loaded.tokenizer is None and loaded.left_out == ()
    for x, y in zip(outputs(loaded.model.eval().double(), task), outputs_of(theirs.double(), kind), strict=True):
        assert_same(kind, x, y)


@pytest.mark.parametrize("heads", [("mlm", "nsp"), ("mlm",), ("nsp",), ()])
def test_pretrained_bert_is_the_same_there_and_back(heads, tmp_path):
    classes = {2: "BertForPreTraining", 0: "BertModel"}
    name = classes.get(len(heads), "BertForMaskedLM" if heads == ("mlm",) else "BertForNextSentencePrediction")
    fresh = pretraining_heads(BERT_SIZES)
    ours = fine_tuned(BERT_SIZES, None, **{head: fresh[head] for head in heads})
    hf.save_pretrained(ours, tmp_path)
    theirs = theirs_from(tmp_path, name)
    if "mlm" in heads:
        decoder = theirs.cls.predictions.decoder
        assert decoder.weight.data_ptr() == theirs.bert.embeddings.word_embeddings.weight.data_ptr()
        assert decoder.bias.data_ptr() == theirs.cls.predictions.bias.data_ptr()
    theirs.float().save_pretrained(tmp_path / "theirs")
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(tmp_path / "theirs/model.safetensors").keys()
    for folder in (tmp_path, tmp_path / "theirs"):
        back = hf.from_pretrained(folder)
        assert back.model.head_names == heads and back.task is None
        assert_equal(ours, back.model, but=("pooler.",) if heads == ("mlm",) else ())


def test_tied_tensors_stay_tied_after_load(tmp_path):
    hf.save_pretrained(fine_tuned(BERT_SIZES, None, **pretraining_heads(BERT_SIZES)), tmp_path)
    model = hf.from_pretrained(tmp_path).model.eval()
    hidden, position = torch.ones(1, 1, 32), torch.zeros(1, 1, dtype=torch.int64)
    before = model.logits("mlm", hidden, position)
    with torch.no_grad():
        model.embedding.word[7] += 1.0  # one step changes both
    changed = (model.logits("mlm", hidden, position) != before).flatten().nonzero().flatten()
    assert changed.tolist() == [7]


def encoded(tokenizer, pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Returns tokens (B, S) padded with 0, lengths, and the rows of the extract tokens."""
    template = Template.of(tokenizer, 24)
    sequences = [template.text(*(tokenizer.encode(text) for text in pair if text)) for pair in pairs]
    lengths = torch.tensor([len(s.tokens) for s in sequences], dtype=torch.int32)
    longest = int(lengths.max())
    tokens = torch.tensor([s.tokens + [0] * (longest - len(s.tokens)) for s in sequences])
    return tokens, lengths, torch.arange(len(pairs)) * longest + torch.tensor([s.row for s in sequences])


PAIRS = (("it was late.", "she slept."), ("no one knew the girl,", "not even he."), ("oh!", None), ("a b c d", "\x7f?"))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_gpt1_s_classes_read_text_as_here(kind, tmp_path):
    """Their tokenizer puts the special tokens round a text and pads it; their model finds the extract token."""
    task, tokenizer = GPT1_TASKS[kind], bpe()
    ours = fine_tuned(GPT1_SIZES, task, lm=SequenceLMHead())
    hf.save_pretrained(ours, tmp_path, tokenizer, task=task)
    theirs = theirs_from(tmp_path, "AutoModelForSequenceClassification")
    assert type(theirs).__name__ == "OpenAIGPTForSequenceClassification"
    texts, others = ([pair[i] for pair in PAIRS[:2]] for i in (0, 1))
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        pairs = theirs(**read(texts, others, padding=True, return_tensors="pt")).logits
        single = theirs(**read([PAIRS[2][0]], return_tensors="pt")).logits
        unknown = theirs(**read(*([x] for x in PAIRS[3]), return_tensors="pt")).logits
    tokens, lengths, rows = encoded(tokenizer, PAIRS)
    logits = ours.double().logits(task.head, ours(tokens, lengths=lengths).hidden, rows)
    expected = torch.cat([pairs, single, unknown])
    assert_same(kind, logits, expected[:, 0] if kind == "regression" else expected)
    back = hf.from_pretrained(tmp_path)
    assert back.task == task and back.tokenizer.hash == tokenizer.hash and back.fresh == back.left_out == ()
    assert_equal(ours.float(), back.model)


def test_gpt1_s_multiple_choice_is_a_model_with_two_heads(tmp_path):
    task, tokenizer = GPT1_TASKS["choice"], bpe()
    ours = fine_tuned(GPT1_SIZES, task, lm=SequenceLMHead())
    hf.save_pretrained(ours, tmp_path, tokenizer, task=task)
    theirs = theirs_from(tmp_path, "OpenAIGPTDoubleHeadsModel")
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.tokens_embed.weight.data_ptr()
    tokens, lengths, rows = encoded(tokenizer, PAIRS)
    places = (rows - torch.arange(4) * tokens.shape[1]).view(2, 2)
    with torch.no_grad():
        expected = theirs(tokens.view(2, 2, -1), mc_token_ids=places)
        hidden = ours.double()(tokens, lengths=lengths).hidden
    assert_same("choices", ours.logits("choice", hidden, rows.view(2, 2)), expected.mc_logits)
    valid = torch.arange(tokens.shape[1]) < lengths[:, None]
    assert_same("next tokens", ours.logits("lm", hidden)[valid], expected.logits.flatten(0, 1)[valid])
    theirs.float().save_pretrained(tmp_path / "theirs")
    for folder, described in ((tmp_path, task), (tmp_path / "theirs", replace(task, max_length=24))):
        back = hf.from_pretrained(folder)
        assert back.task == described and back.model.head_names == ("lm", "choice")
        assert_equal(ours.float(), back.model)


def test_a_bert_head_without_a_bias_gets_zeros_there(tmp_path):
    task = Description("classification", ("a", "b"), head_bias=False)
    ours = fine_tuned(BERT_SIZES, task)
    hf.save_pretrained(ours, tmp_path, task=task)
    theirs = theirs_from(tmp_path, "AutoModelForSequenceClassification", attn_implementation="eager")
    assert not theirs.classifier.bias.any()
    assert_same("logits", outputs(ours.double(), task)[0], outputs_of(theirs, task.kind)[0])


@pytest.mark.parametrize(
    ("config", "task", "sentence"),
    [
        (GPT1_SIZES, Description("classification", ("a", "b")), "has no bias, .* train with --no-head-bias"),
        (
            GPT1_SIZES,
            Description("regression", head_bias=False, both_orders=True),
            "no class that reads a pair in both",
        ),
        (GPT1_SIZES, Description("tagging", ("O", "B")), r"no openai-gpt class with 'lm' .*'tags' \(TaggingHead\)"),
        (GPT1_SIZES, Description("span"), r"no openai-gpt class with 'lm' .*'span' \(SpanHead\); only fastlm"),
        (BERT_SIZES, Description("classification", ("a",)), "at least 2 labels expected for BertForSequenceClass"),
    ],
)
def test_what_transformers_has_no_class_for_is_refused_by_a_sentence(config, task, sentence, tmp_path):
    others = {"lm": SequenceLMHead()} if isinstance(config, GPT1Config) else {}
    with pytest.raises(ValueError, match=sentence) as error:
        hf.save_pretrained(fine_tuned(config, task, **others), tmp_path / "model", bpe(), task=task)
    assert "\n" not in str(error.value) and not (tmp_path / "model").exists()


def test_a_model_and_its_description_must_fit(tmp_path):
    task = Description("classification", ("a", "b"))
    model = fine_tuned(BERT_SIZES, task)
    for given, sentence in (
        (None, "task: the description of the model's classification expected, got None"),
        (Description("span"), "expected, got one of span"),
        (replace(task, labels=("a", "b", "c")), "a label for each of the head's 2 units expected, got 3"),
    ):
        with pytest.raises(ValueError, match=sentence):
            hf.save_pretrained(model, tmp_path, task=given)
    both = fine_tuned(BERT_SIZES, task, **pretraining_heads(BERT_SIZES))
    with pytest.raises(ValueError, match=r"no bert class with 'mlm' \(MaskedLMHead\), 'nsp' .*'classes'"):
        hf.save_pretrained(both, tmp_path, task=task)
    with pytest.raises(ValueError, match="tokenizer: the one that the model was fine-tuned with expected"):
        gpt1 = GPT1_TASKS["regression"]
        hf.save_pretrained(fine_tuned(GPT1_SIZES, gpt1), tmp_path, task=gpt1)
    with pytest.raises(ValueError, match="tokenizer: at most the model's 600 entries expected, got 603"):
        hf.save_pretrained(model, tmp_path, bpe(), task=task)
    assert not list(tmp_path.iterdir())


# Labels ---------------------------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


@pytest.fixture
def classifier(tmp_path):
    """A folder of transformers' with a classifier of three labels, without our task.json."""
    task = TASKS["classification"][1]
    hf.save_pretrained(fine_tuned(BERT_SIZES, task), tmp_path, task=task)
    (tmp_path / "task.json").unlink()
    return tmp_path


def test_labels_are_ordered_by_their_numbers_not_by_position(classifier):
    edit_config(classifier, id2label={"2": "maybe", "0": "no", "1": "yes"}, label2id={"maybe": 0})
    assert hf.read_task(classifier).labels == ("no", "yes", "maybe")
    many = {str(i): f"label {i}" for i in sorted(range(12), key=str)}  # 0, 1, 10, 11, 2, ...
    assert hf.config.import_labels({"id2label": many}) == tuple(f"label {i}" for i in range(12))


def test_labels_of_id2label_win_over_task_json(classifier):
    written = Description("classification", ("x", "y", "z"), format="mnli", max_length=99)
    (classifier / "task.json").write_text(json.dumps(written.to_json()))
    assert hf.read_task(classifier) == replace(written, labels=("no", "yes", "maybe"))
    (classifier / "task.json").write_text(json.dumps(Description("span").to_json()))
    with pytest.raises(ValueError, match=r"task.json: kind 'classification' expected, .* got 'span'"):
        hf.read_task(classifier)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"id2label": {"0": "a", "2": "b", "3": "c"}},
            r"config.json: id2label must number its labels 0 to 2, got 0, 2, 3",
        ),
        ({"id2label": {"a": "0", "b": "1", "c": "2"}}, "id2label must number its labels 0 to 2, got a, b, c"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "id2label must have a label once, got 'a' twice"),
        ({"id2label": {"0": "a", "1": "b"}}, r"classifier.weight with 2 rows expected, one per label .* got 3"),
        ({"problem_type": "multi_label_classification"}, "problem_type must be 'single_label_classification'"),
        ({"problem_type": "regression"}, "or 'regression' with one number, .* got 'regression' with 3 outputs"),
        (
            {"architectures": None},
            r"classifier.weight is the head of a task, but \"architectures\" in config.json names",
        ),
    ],
)
def test_labels_that_are_not_those_of_the_head_are_refused(classifier, changes, sentence):
    edit_config(classifier, **changes)
    with pytest.raises(ValueError, match=sentence) as error:
        hf.from_pretrained(classifier)
    assert "\n" not in str(error.value) and str(classifier) in str(error.value)


def test_labels_without_names_are_numbered_as_in_transformers(classifier):
    edit_config(classifier, id2label=None, label2id=None, num_labels=3)
    assert hf.from_pretrained(classifier).task.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert transformers.AutoConfig.from_pretrained(classifier).id2label == {i: f"LABEL_{i}" for i in range(3)}


# Which heads are read ---------------------------------------------------------------------------------------------


def test_given_heads_of_tasks_are_fresh_and_those_of_pretraining_are_read(tmp_path):
    heads = pretraining_heads(BERT_SIZES)
    ours = fine_tuned(BERT_SIZES, None, **heads)
    hf.save_pretrained(ours, tmp_path)
    task = Description("classification", ("a", "b"))
    loaded = hf.from_pretrained(tmp_path, {"mlm": pretraining_heads(BERT_SIZES)["mlm"], "classes": task_head(task, 32)})
    assert loaded.fresh == ("classes.weight", "classes.bias")
    assert loaded.left_out == ("cls.seq_relationship.bias", "cls.seq_relationship.weight")
    assert torch.equal(loaded.model.mlm.bias, ours.mlm.bias) and loaded.model.classes.weight.std() > 0


def test_a_second_task_does_not_begin_with_the_head_of_the_first(classifier):
    task = Description("classification", ("p", "q", "r"))
    first = hf.from_pretrained(classifier)
    second = hf.from_pretrained(classifier, {"classes": task_head(task, 32)})
    assert second.task is None and second.left_out == ("classifier.bias", "classifier.weight")
    assert not torch.equal(first.model.classes.weight, second.model.classes.weight)
    assert torch.equal(first.model.pooler.weight, second.model.pooler.weight)


def test_a_head_that_lacks_a_tensor_is_refused(classifier):
    path = classifier / "model.safetensors"
    for name in ("classifier.bias", "classifier.weight", "bert.pooler.dense.weight"):
        weights = load_file(path)
        save_file({n: t for n, t in weights.items() if n != name}, path)
        with pytest.raises(ValueError, match=f"missing: {name}"):
            hf.from_pretrained(classifier)
        save_file(weights, path)


def test_rxnfp_s_fifty_classes_are_predicted_as_by_transformers():
    """Schwaller et al. 2021: 50 classes of reactions. Its config.json names two labels, and num_labels says 50."""
    folder = installed("rxnfp", "models/transformers/bert_ft_10k_25s")
    model, tokenizer = load_pretrained(folder)
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    assert theirs.config.num_labels == 50
    task = hf.read_task(folder)
    assert task.labels == tuple(theirs.config.id2label.values()) and len(task.labels) == 50
    pieces = "Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1", "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1"
    for text in pieces:
        names = text.replace(">>", " >> ").replace("Br", " Br ").replace("Cl", " Cl ").split()
        atoms = [piece for name in names for piece in ([name] if name in (">>", "Br", "Cl") else name)]
        tokens = torch.tensor([[tokenizer.id(name) for name in ("[CLS]", *atoms, "[SEP]")]])
        with torch.no_grad():
            expected = theirs.double().eval()(tokens).logits
            logits = model.double().logits("classes", model(tokens).hidden, torch.tensor([0]))
        assert_same("logits", logits, expected)
        assert logits.argmax() == expected.argmax() and logits.softmax(-1).max() > 0.5
