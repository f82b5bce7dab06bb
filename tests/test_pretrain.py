"""A run of pretraining: its records and reports, the errors that refuse it, and its plan."""

import gc
import json
import os
import shutil
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import STEPS, before_update, configuration, losses, one_thread, run, text

from fastlm import data, models
from fastlm.data import DataError
from fastlm.device import DeviceError
from fastlm.evaluate import ngrams
from fastlm.inference.load import load_trained
from fastlm.run_folder import RunError, find_checkpoints
from fastlm.tasks.causal_lm import CausalLM
from fastlm.tasks.masked_lm import _masked_pairs
from fastlm.train import loop, plan, trainer
from fastlm.train.run import NUMERICS, TrainingFolder
from fastlm.train.schedule import learning_rate

__all__ = ["one_thread", "text"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["gpt1_tiny", "bert_tiny"])
def finished(request, tmp_path_factory, text, one_thread):
    """Returns a finished run per model: recipe, folder and the result of `train`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = configuration(text, request.param)
    return config, folder, run(config, folder)


def test_the_folder_holds_what_it_should(finished):
    _, folder, _ = finished
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {
        "checkpoints", "config.json", "data", "loss.png", "metrics.jsonl", "model", "report.json", "report.md",
        "tokenizer.json",
    }  # fmt: skip
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert {path.name for path in (folder / "model").iterdir()} == {"config.json", "model.safetensors"}
    assert [path.name for path in find_checkpoints(folder / "checkpoints")] == ["step-00000008", "step-00000012"]
    recorded = json.loads((folder / "config.json").read_text())
    assert recorded["plan"]["steps"] == STEPS and recorded["versions"]["torch"] == torch.__version__


def test_metrics_have_a_line_an_update(finished):
    config, folder, _ = finished
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    names = config.task().loss_names
    for step, record in enumerate(records):
        rate = learning_rate(step, peak=config.train.learning_rate, warmup=1, steps=STEPS, decay=config.train.decay)
        assert record["learning_rate"] == rate
        assert all(0 < record[name] < 20 for name in (*names, "gradient_norm"))
        assert record["tokens_per_second"] > 0
        assert ("validation_loss" in record) == (record["step"] in (5, 10, 12))
    assert [r["tokens"] for r in records] == sorted({r["tokens"] for r in records})
    assert [r["seconds"] for r in records] == sorted(r["seconds"] for r in records)
    if config.name == "gpt1_tiny":
        assert records[-1]["tokens"] == STEPS * config.train.batch_size * 16
    else:  # padding does not count
        tokens = 0
        for length, parts in ((24, range(0, 12)), (32, range(12, 24))):
            pairs = data.SentencePairs(data.Shards.open(folder / "data"), "train", length, 2, config.train.seed)
            tokens += sum(int(pairs.batch(part)["lengths"].sum()) for part in parts)
        assert records[-1]["tokens"] == tokens
        assert records[3]["loss"] == pytest.approx(records[3]["mlm_loss"] + records[3]["nsp_loss"], rel=1e-6)


def held_out(config, folder):
    """Returns the trained model, its shards, and the batches of the held-out text."""
    model, tokenizer = load_trained(folder, "cpu")
    shards = data.Shards.open(folder / "data", tokenizer)
    kind = data.Windows if config.name == "gpt1_tiny" else data.SentencePairs
    dataset = kind(shards, "validation", config.train.phases[-1][1], 2, config.train.seed)
    return model, shards, [dataset.batch(i) for i in range(dataset.batches_per_epoch)]


@torch.no_grad()
def test_the_report_agrees_with_its_definitions(finished):
    config, folder, result = finished
    assert json.loads((folder / "report.json").read_text()) == result
    assert (result["steps"], result["tokens"]) == (STEPS, losses(folder)[-1]["tokens"])
    model, shards, batches = held_out(config, folder)
    assert result["parameters"] == models.parameter_count(model.config)
    train, validation = shards.split("train").tokens, shards.split("validation")
    scores = result["scores"]
    if config.name == "gpt1_tiny":
        loss = torch.stack([model(**batch).loss for batch in batches]).double().mean().item()
        assert scores["gpt1_tiny"]["loss"] == pytest.approx(loss, rel=1e-5)
        before, after = (np.concatenate([b[name] for b in batches]) for name in ("tokens", "targets"))
        counted = ngrams.ngram_losses(train, before, after, shards.vocab_size)
        for name, expected in (("gpt1_tiny", loss), *counted.items()):
            assert scores[name]["loss"] == pytest.approx(expected, rel=1e-5)
            assert scores[name]["perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)
            bits = expected / np.log(2) * len(validation.tokens) / validation.bytes
            assert scores[name]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
        return
    masked = right = pairs = pairs_right = loss = nsp_loss = frequent = 0
    most = np.bincount(train).argmax()
    for batch in batches:
        output = model(batch["tokens"], batch["segments"], batch["lengths"])
        words = model.logits("mlm", output.hidden, batch["mlm_positions"]).double().log_softmax(-1)
        following = model.logits("nsp", output.hidden).double().log_softmax(-1)
        for row, labels in enumerate(batch["next_sentence_labels"].tolist()):
            pairs, pairs_right = pairs + 1, pairs_right + (following[row].argmax().item() == labels)
            nsp_loss -= following[row, labels].item()
            for place, target in enumerate(batch["mlm_targets"][row].tolist()):
                if target != -100:
                    masked, loss = masked + 1, loss - words[row, place, target].item()
                    right += words[row, place].argmax().item() == target
                    frequent += target == most
    expected = {"mlm_loss": loss / masked, "nsp_loss": nsp_loss / pairs, "masked_accuracy": right / masked}
    assert scores["bert_tiny"] == pytest.approx(expected | {"nsp_accuracy": pairs_right / pairs}, rel=1e-5)
    assert scores["unigram"]["masked_accuracy"] == pytest.approx(frequent / masked)
    assert scores["unigram"]["mlm_loss"] > scores["bigram"]["mlm_loss"] > 0


def test_the_examples_are_of_the_held_out_text(finished):
    config, folder, result = finished
    _, tokenizer = load_trained(folder, "cpu")
    shards = data.Shards.open(folder / "data", tokenizer)
    plain = tokenizer.decode(shards.split("validation").tokens.tolist()).replace("\n", " ").replace('"', "")
    assert len(result["examples"]) == 4 and len(set(result["examples"])) == 4
    for example in result["examples"]:
        if config.name == "gpt1_tiny":
            begun = example.split("**")[1]
            assert len(begun.split()) == 4 and begun in plain and len(example) > len(begun) + 5
        else:
            sentence, rest = example.split(" (", 1)
            word, guesses = rest.split("): ", 1)
            assert sentence.count("[MASK]") == 1 and word.isalpha() and len(guesses.split("%")) == 4


def test_a_finished_run_is_reported_again_and_not_trained(finished, monkeypatch):
    config, folder, result = finished
    monkeypatch.setattr(loop, "_train", None)
    notes = []
    assert run(config, folder, notes) == result
    assert notes == [f"{folder} is finished; this is its report"]


def test_a_finished_run_of_other_numerics_is_reported_too(finished, monkeypatch):
    config, folder, result = finished
    monkeypatch.setattr("fastlm.train.run.NUMERICS", 99)
    assert run(config, folder) == result


def test_a_damaged_report_is_named_and_written_again_once_it_is_removed(finished, tmp_path):
    config, finished_folder, result = finished
    folder = Path(shutil.copytree(finished_folder, tmp_path / "run"))
    (folder / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json: damaged, .*; remove it, and the command that trained"):
        run(config, folder)
    (folder / "report.json").unlink()
    assert run(config, folder) == result


def test_masked_pairs_are_shown_the_true_token_before():
    batch = {
        "tokens": torch.tensor([[2, 4, 4, 7, 3, 9, 3], [2, 8, 3, 6, 4, 3, 0]]),
        "mlm_positions": torch.tensor([[1, 2, 5], [4, 0, 0]]),
        "mlm_targets": torch.tensor([[11, 12, 13], [14, -100, -100]]),
    }
    before, after = _masked_pairs(batch)
    assert before.tolist() == [2, 11, 3, 6] and after.tolist() == [11, 12, 13, 14]


def test_training_lowers_the_loss(tmp_path, text):
    scores = run(configuration(text, steps=50, dropout=0.0, learning_rate=3e-3, accumulation=1), tmp_path)["scores"]
    assert scores["gpt1_tiny"]["loss"] < losses(tmp_path)[0]["loss"] - 0.5


# Errors ---------------------------------------------------------------------------------------------------------


def test_two_processes_may_not_train_in_one_folder(tmp_path, text):
    config = configuration(text)
    first = TrainingFolder(tmp_path)
    first.open(config.task(), config.to_json())
    with pytest.raises(RunError, match="another process is training in"):
        run(config, tmp_path)
    first.close()
    run(config, tmp_path)


def test_another_configuration_is_named(tmp_path, text):
    config = configuration(text)
    run(config, tmp_path)
    with pytest.raises(
        RunError, match=r"another configuration: batch_size \(now 2, there 4\), seed \(now 7, there 0\)"
    ):
        run(config.with_options({"batch_size": 2, "seed": 7}), tmp_path)


def test_a_run_without_an_update_gives_way_to_another(tmp_path, text):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="phases: sequence length 100 is above the 64 of gpt1_tiny"):
        run(configuration(text, phases=((1.0, 100),), vocab_size=300), folder)
    run(configuration(text, vocab_size=400), folder)
    assert load_trained(folder, "cpu")[1].vocab_size == 400


def write_pages(path, pages):
    path.write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))


def test_a_start_on_corrected_data_makes_its_tokenizer_and_shards_anew(tmp_path, text):
    data_file, folder, notes = tmp_path / "text.jsonl", tmp_path / "run", []
    write_pages(data_file, ["One."])
    with pytest.raises(DataError, match="at least two sentences expected"):
        run(configuration(data_file), folder)
    assert (folder / "tokenizer.json").is_file()
    data_file.write_bytes(text.read_bytes())
    run(configuration(data_file), folder, notes)
    run(configuration(text), tmp_path / "fresh")
    assert notes[0] == f"{folder} has data that was made from other files or options; it is made again"
    assert losses(folder) == losses(tmp_path / "fresh")


@pytest.fixture
def prepared(tmp_path, text, monkeypatch):
    """Returns a copy of the text, and a run folder with its tokenizer and shards, stopped before the first update."""
    data_file, folder = tmp_path / "text.jsonl", tmp_path / "run"
    data_file.write_bytes(text.read_bytes())

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_update(patch, 0, stop)
        with pytest.raises(KeyboardInterrupt):
            run(configuration(data_file), folder)
    return data_file, folder


def made_anew(config, folder):
    """Returns whether opening the folder removes its tokenizer and shards; asserts that a message says so."""
    notes, opened = [], TrainingFolder(folder)
    opened.open(config.task(), config.to_json(), notes.append)
    opened.close()
    removed = {not opened.tokenizer_file.exists(), not opened.data.exists(), bool(notes)}
    assert len(removed) == 1
    return removed.pop()


def test_a_tokenizer_and_shards_of_the_same_data_are_kept(prepared):
    data_file, folder = prepared
    os.utime(data_file, (0, 0))  # a new modification time, but the same text
    assert not made_anew(configuration(data_file), folder)


def other_text_of_the_same_size_and_time(data_file, monkeypatch):
    times = data_file.stat()
    data_file.write_bytes(data_file.read_bytes().replace(b"the", b"hte"))
    os.utime(data_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert data_file.stat().st_size == times.st_size and data_file.stat().st_mtime_ns == times.st_mtime_ns
    return {}


OTHER = {
    "text": other_text_of_the_same_size_and_time,
    "vocab_size": lambda *_: {"vocab_size": 400},
    "validation_fraction": lambda *_: {"validation_fraction": 0.3},
    "document": lambda *_: {"document": "file"},
    "format": lambda _, monkeypatch: monkeypatch.setattr(CausalLM, "data_version", 99) or {},
    "numerics": lambda _, monkeypatch: monkeypatch.setattr("fastlm.train.run.NUMERICS", 99) or {},
}


@pytest.mark.parametrize("other", OTHER)
def test_a_tokenizer_and_shards_of_other_data_or_options_are_not_kept(prepared, monkeypatch, other):
    data_file, folder = prepared
    options = OTHER[other](data_file, monkeypatch)
    assert made_anew(configuration(data_file, **options), folder)


@pytest.mark.parametrize(
    ("pages", "options", "sentence"),
    [
        (
            60,
            {"phases": ((1.0, 64),)},
            r"has \d+ validation tokens; windows of sequence_length 64 need 128, .*or a larger ",
        ),
        (60, {"phases": ((0.9, 8), (0.1, 64))}, "validation tokens; windows of sequence_length 64"),
        (
            2,
            {"phases": ((1.0, 64),), "validation_fraction": 0.9},
            "train tokens; windows of sequence_length 64 need 128",
        ),
        (3, {"model": "bert_tiny"}, "has one validation document; sentence pairs need two or more, .*or a larger "),
    ],
)
def test_too_little_data_is_found_before_an_update(tmp_path, text, monkeypatch, pages, options, sentence):
    write_pages(tmp_path / "text.jsonl", [f"Page {n} is short. It ends here." for n in range(pages)])
    before_update(monkeypatch, 0, lambda: pytest.fail("an update was made"))
    config = configuration(tmp_path / "text.jsonl", **{"validation_fraction": 0.05, "validate_every": 1000, **options})
    with pytest.raises(DataError, match=sentence):
        run(config.with_options({"epochs": 1.0}), tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(tmp_path, text):
    (tmp_path / "thesis.txt").write_text("dear reader")
    with pytest.raises(RunError, match="is not empty and holds no run of fastlm"):
        run(configuration(text), tmp_path)
    with pytest.raises(RunError, match="is a file; a folder is needed"):
        run(configuration(text), tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "is not the configuration"),
        ('{"format": 3}', "is not the configuration of a fastlm run of format 1 or 2"),
        (f'{{"format": 2, "numerics": {NUMERICS}, "train": {{}}, "plan": null}}', "damaged: it has no 'made_from'"),
    ],
)
def test_a_foreign_config_is_refused(tmp_path, text, content, sentence):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=sentence):
        run(configuration(text), tmp_path)
    assert (tmp_path / "config.json").read_text() == content


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_checkpoints(tmp_path, text, monkeypatch):
    def spoil():
        for parameter in made[0].model.parameters():
            parameter.data.mul_(torch.nan)

    made, init = [], trainer.Trainer.__init__
    monkeypatch.setattr(
        trainer.Trainer, "__init__", lambda self, *arguments: (init(self, *arguments), made.append(self))[0]
    )
    before_update(monkeypatch, 7, spoil)
    with pytest.raises(RunError, match="loss became nan at step 8, with learning rate .*; start another run with"):
        run(configuration(text), tmp_path)
    assert [path.name for path in find_checkpoints(tmp_path / "checkpoints")] == ["step-00000004"]
    assert len(losses(tmp_path)) == 7


def test_a_perplexity_beyond_floating_point_is_infinite():
    assert ngrams.score(1e4, 10, 40).perplexity == float("inf")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "no text in it"), (b" \n\n", "no text in it"), (b"a \xff b", "UTF-8 text expected, got the byte 0xff")],
)
def test_text_that_cannot_be_used(tmp_path, content, sentence):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        run(configuration(tmp_path / "text.txt"), tmp_path / "run")


def test_a_trained_model_is_loaded_also_while_it_trains(tmp_path, text, monkeypatch):
    with pytest.raises(RunError, match=r"is not a run folder \(it has no config.json\)"):
        load_trained(tmp_path, "cpu")

    def look():
        if not find_checkpoints(tmp_path / "checkpoints"):
            with pytest.raises(RunError, match="neither model/ nor a checkpoint yet"):
                load_trained(tmp_path, "cpu")
        seen.append(load_trained(tmp_path, "cpu")[0].training)

    seen = []
    before_update(monkeypatch, 5, look)
    run(configuration(text), tmp_path)
    assert seen == [False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(tmp_path, text):
    with pytest.raises(DeviceError, match="device: cuda was requested"):
        run(configuration(text, device="cuda"), tmp_path / "run")


# The plan -------------------------------------------------------------------------------------------------------

PLAN = trainer.Plan(1, 0, "cpu", "auto", {})


@pytest.fixture
def clock(monkeypatch):
    """Fakes the seconds of an update, by precision or sequence length."""
    seconds = {}

    def timed(task, config, placement, plan, length, least):
        return [seconds.get(plan.precision, 0.0) + seconds.get(length, 0.0)] * 3

    monkeypatch.setattr(plan, "update_seconds", timed)
    return seconds


def test_minutes_become_steps(text, clock):
    clock |= {24: 0.5, 32: 1.0}
    recipe = configuration(text, "bert_tiny", phases=((0.75, 24), (0.25, 32)), minutes=3.0, steps=None)
    steps, why = plan.count_steps(recipe.task(), recipe.train, recipe.placement, PLAN)
    assert steps == round(180 / (0.75 * 0.5 + 0.25 * 1.0)) and why == " in about 3 minutes at 0.625 s each"


def test_epochs_become_steps(text, finished):
    config, folder, _ = finished
    task, phases = config.task(), config.train.phases
    task.prepare(folder, print)
    steps, _ = plan.count_steps(task, config.train.with_length(epochs=3.0), config.placement, PLAN)
    batches = [share * task.dataset("train", length, 2, 0).batches_per_epoch for share, length in phases]
    assert steps == int(np.ceil(3 * sum(batches) / 2))


@pytest.mark.parametrize(
    ("able", "bf16", "expected", "why"),
    [
        (False, 0.1, "fp32", "no avx512_bf16 or amx_bf16"),
        (True, 0.1, "bf16", "0.3 s in fp32, 0.1 s in bf16"),
        (True, 0.5, "fp32", "0.3 s in fp32, 0.5 s in bf16"),
    ],
)
def test_the_faster_precision_is_taken(text, monkeypatch, clock, able, bf16, expected, why):
    clock |= {"fp32": 0.3, "bf16": bf16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    recipe = configuration(text, precision="auto")
    precision, sentence = plan.choose_precision(recipe.task(), recipe.train, recipe.placement, PLAN)
    assert precision == expected and why in sentence
    asked = replace(recipe.placement, precision="bf16")
    assert plan.choose_precision(recipe.task(), recipe.train, asked, PLAN) == ("bf16", "as asked")


def test_the_plan_is_made_by_real_timing(tmp_path, text, monkeypatch):
    recipe = configuration(text, precision="auto", minutes=1e-3, steps=None)
    task, notes = recipe.task(), []
    task.prepare(tmp_path, print)
    monkeypatch.setattr(plan, "TIMED_SECONDS", 0.0)
    made = plan.make_plan(task, recipe.train, recipe.placement, notes.append)
    assert made.steps >= 1 and made.warmup <= made.steps / 10 and made.precision in ("fp32", "bf16")
    assert made.device == "cpu" and made.task == task.identity()
    assert made.task == {"vocab_size": task.tokenizer.vocab_size, "tokenizer_hash": task.tokenizer.hash}
    assert notes[0].startswith("device cpu, ") and f"{made.steps} updates in about 0.001 minutes" in notes[1]


def test_a_model_that_was_only_timed_is_freed(tmp_path, text, monkeypatch):
    recipe = configuration(text)
    task, made, init = recipe.task(), [], trainer.Trainer.__init__
    task.prepare(tmp_path, print)
    monkeypatch.setattr(
        trainer.Trainer,
        "__init__",
        lambda self, *arguments: (init(self, *arguments), made.append(weakref.ref(self)))[0],
    )
    threads = set(threading.enumerate())
    plan.update_seconds(task, recipe.train, recipe.placement, replace(PLAN, precision="fp32"), 16, 0.0)
    gc.collect()
    assert len(made) == 1 and made[0]() is None
    assert not set(threading.enumerate()) - threads


def test_bf16_autocast_trains(tmp_path, text):
    run(configuration(text, precision="bf16", steps=3), tmp_path)
    assert all(np.isfinite(record["loss"]) for record in losses(tmp_path))
    assert load_trained(tmp_path, "cpu")[0].embedding.word.dtype == torch.float32
