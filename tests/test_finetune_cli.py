"""Fine-tuning from the command line: finetune, --dry-run, --search, evaluate, predict, and errors in one sentence."""

import io
import json
import signal

import pytest
from labelled import save_start, write_jsonl, write_tsv
from runs import before_update, losses, one_thread, weights
from test_cli import main

from fastlm import cli
from fastlm.commands import dry_run
from fastlm.run_folder import RunFolder
from fastlm.train.recorder import Recorder

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")

GOOD, BAD = ("a good film", "the story is fine", "a fine story"), ("a bad film", "the story is dull", "a dull film")
ROWS = [(f"{text} {end}", label) for end in (".", "!", "?", "; is it ?") for label, texts in ((1, GOOD), (0, BAD))
        for text in texts]  # fmt: skip


class Files:
    """Names pretrained models and labelled files."""

    def __init__(self, folder):
        self.bert = save_start(folder / "bert", "bert_tiny", dropout=0.1, embedding_dropout=0.1)
        self.gpt1 = save_start(folder / "gpt1", "gpt1_tiny", dropout=0.1)
        self.train = write_tsv(folder / "train.tsv", [("sentence", "label"), *ROWS])
        self.dev = write_tsv(folder / "dev.tsv", [("sentence", "label"), *ROWS[1::2]])
        self.test = write_tsv(
            folder / "test.tsv", [("index", "sentence"), *((i, t) for i, (t, _) in enumerate(ROWS[:5]))]
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


def command(files, folder, start=None, **more):
    """Returns the arguments of a short run; an option of None is left out."""
    given = {"task": "sst2", "train_file": files.train, "dev_file": files.dev, "run": folder, "device": "cpu"}
    given |= {"precision": "fp32", "batch_size": 4, "learning_rate": 3e-3, "steps": 8, "validate_every": 3}
    flags = [part for name, value in (given | more).items() if value is not None
             for part in (f"--{name.replace('_', '-')}", value)]  # fmt: skip
    return ["finetune", start or files.bert, *flags]


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """Returns the folder of a finished run that predicted a test file."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = {"steps": None, "epochs": 2, "test_file": files.test, "layer_decay": 0.8, "head_rate": 2.0}
    arguments = command(files, folder, **options)
    assert cli.main([str(argument) for argument in arguments]) == 0
    return folder


def test_a_run_reports_and_predicts_and_says_what_it_made(files, trained, capsys):
    report = json.loads((trained / "report.json").read_text())
    assert list(report["scores"]) == ["majority", "tf-idf + logistic regression", "bert on sst2"]
    assert report["steps"] == 2 * (len(ROWS) // 4) and report["best"]["metric"] == "accuracy"
    for name in ("loss.png", "scores.png", "confusion.png", "report.md", "model/task.json"):
        assert (trained / name).is_file()
    lines = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2", "3", "4"]
    submission = (trained / "submission" / "SST-2.tsv").read_text().splitlines()
    assert submission == ["index\tprediction", *(f"{line['id']}\t{line['label']}" for line in lines)]
    code, out, _ = main(capsys, "finetune", "--run", trained)
    assert code == 0 and "is finished; this is its report" in out and out.endswith(f"fastlm predict {trained} FILE\n")


def test_epochs_are_validated_and_rates_recorded(trained):
    validated = [r["step"] for r in losses(trained) if "validation_accuracy" in r]
    assert validated == [3, 6, 9, 12] and losses(trained)[0]["learning_rate"] == 0  # an epoch has 6 updates


@pytest.mark.parametrize("model", ["bert", "gpt1"])
def test_an_interrupted_run_goes_on_exactly_with_what_it_was_given(files, tmp_path, capsys, monkeypatch, model):
    whole, folder, start = tmp_path / "whole", tmp_path / "run", getattr(files, model)
    options = {"seed": 3, "checkpoint_every": 2, "accumulation": 2}
    assert main(capsys, *command(files, whole, start, **options))[0] == 0
    with monkeypatch.context() as patch:
        before_update(patch, 4, lambda: signal.raise_signal(signal.SIGINT))
        code, _, err = main(capsys, *command(files, folder, start, **options))
    assert code == cli.INTERRUPTED and "stopped and saved at step 5 of 8" in err[-1]
    code, out, _ = main(capsys, "finetune", "--run", folder)
    assert code == 0 and "resuming at step 5 of 8" in out
    assert losses(folder) == losses(whole) and weights(folder) == weights(whole)


class Killed(Exception):
    pass


def test_a_kill_after_a_validation_and_before_its_checkpoint_changes_nothing(files, tmp_path, capsys, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main(capsys, *command(files, whole))[0] == 0

    def die(*ignored):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Recorder, "save", die)
        main(capsys, *command(files, folder))
    assert len(losses(folder)) == 3 and not (folder / "checkpoints").exists()
    assert main(capsys, *command(files, folder))[0] == 0
    assert losses(folder) == losses(whole) and weights(folder) == weights(whole)


def test_a_dry_run_walks_everything_and_leaves_nothing(files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "EXAMPLES", 8)
    arguments = command(files, tmp_path / "run", steps=None, layer_decay=0.5, head_rate=3.0, accumulation=2)
    code, out, _ = main(capsys, *arguments, "--dry-run")
    assert code == 0 and not any(tmp_path.iterdir())
    assert out.startswith("# bert on sst2, bert-paper: a dry run\n")
    assert "- data: 24 training and 12 dev examples, which make 24 and 12 inputs" in out
    assert "- updates: 18 of 4 inputs, with 6 validations" in out  # 3 epochs of 6; every 3 updates
    rates = {line.split("|")[1].strip(): float(line.split("|")[3]) for line in out.splitlines() if line.count("|") == 4
             and "-" not in line.split("|")[1] and "rate" not in line}  # fmt: skip
    expected = {"embedding": 3e-3 / 16, "blocks.0": 3e-3 / 8, "blocks.1": 3e-3 / 4, "pooler": 3e-3 / 2, "classes": 9e-3}
    assert rates == pytest.approx(expected, rel=5e-3)
    assert (
        "time: about " in out and "MB with gradients and Adam's moments" in out and "0.0% of a batch is padding" in out
    )


def test_a_search_resumes_and_compares_seeds(files, tmp_path, capsys, monkeypatch):
    arguments = command(files, tmp_path / "run", steps=2)
    arguments += ["--search", "learning_rate=1e-3,3e-3 seed=0,1"]
    with monkeypatch.context() as patch:
        before_update(patch, 0, lambda: signal.raise_signal(signal.SIGINT))
        code, _, err = main(capsys, *arguments)
    assert code == cli.INTERRUPTED and err[-1].startswith("fastlm: trial 1 of 4: stopped and saved at step 1 of 2")
    code, out, _ = main(capsys, *arguments)
    assert code == 0 and "resuming at step 1 of 2" in out and "trial 4 of 4: learning_rate=0.003,seed=1" in out
    found = json.loads((tmp_path / "run" / "search.json").read_text())
    assert [len(summary["scores"]) for summary in found["summaries"]] == [2, 2]
    table = (tmp_path / "run" / "search.md").read_text()
    assert table.startswith("# bert on sst2, bert-paper\n\n| learning_rate | seeds | accuracy, mean | deviation |")
    before_update(monkeypatch, 0, lambda: pytest.fail("a finished trial was trained again"))
    code, out, _ = main(capsys, *arguments)
    assert code == 0 and out.count("is finished; this is its report") == 4
    assert (tmp_path / "run" / "search.md").read_text() == table


def test_evaluate(files, trained, capsys):
    report = json.loads((trained / "report.json").read_text())
    code, out, _ = main(capsys, "evaluate", trained, files.dev, "--device", "cpu", "--json")
    scores = json.loads(out)
    assert code == 0 and scores["examples"] == 12
    assert scores["accuracy"] == report["scores"]["bert on sst2"]["accuracy"]
    code, out, _ = main(capsys, "evaluate", trained, files.dev, "--device", "cpu")
    assert code == 0 and f"{scores['accuracy']:.4f}" in out and "| examples | accuracy |" in out


def test_evaluate_takes_a_model_s_folder_and_one_of_transformers(files, trained, tmp_path, capsys):
    assert main(capsys, "convert", trained, tmp_path / "theirs")[0] == 0
    table = write_tsv(tmp_path / "dev.tsv", [("text", "label"), *ROWS[1::2]])
    arguments = (table, "--task", "tsv", "--device", "cpu", "--json")
    found = [json.loads(main(capsys, "evaluate", folder, *arguments)[1])["accuracy"]
             for folder in (trained / "model", tmp_path / "theirs")]  # fmt: skip
    assert found == [json.loads((trained / "report.json").read_text())["scores"]["bert on sst2"]["accuracy"]] * 2


def test_predict_reads_a_file_or_a_stream(files, trained, tmp_path, capsys, monkeypatch):
    code, out, _ = main(capsys, "predict", trained, files.test, "--device", "cpu", "--submission", tmp_path / "glue")
    assert code == 0 and out == (trained / "predictions.jsonl").read_text()
    assert (tmp_path / "glue" / "SST-2.tsv").read_text() == (trained / "submission" / "SST-2.tsv").read_text()
    lines = "".join([ROWS[0][0] + "\n", json.dumps({"id": "x", "text": ROWS[1][0]}) + "\n"])
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, _ = main(capsys, "predict", trained, "--device", "cpu", "--output", tmp_path / "out.jsonl")
    predicted = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert code == 0 and out == "" and [p["id"] for p in predicted] == ["0", "x"]
    expected = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()][:2]
    for one, other in zip(predicted, expected, strict=True):
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_convert_and_start_from_the_converted_model(files, tmp_path, capsys):
    assert main(capsys, "convert", files.bert, tmp_path / "theirs")[::2] == (0, [])
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == "bert"
    arguments = command(files, tmp_path / "run", tmp_path / "theirs", steps=1)
    code, out, err = main(capsys, *arguments)
    assert (code, err) == (0, []) and "# theirs on sst2" in out


USAGE = [
    (["finetune"], "finetune: START, --task, --train-file, --dev-file needed for a new run (runs/finetune holds none"),
    (["finetune", "BERT", "--task", "sst2"], "finetune: --train-file, --dev-file needed for a new run (runs/sst2 "),
    (["finetune", "BERT", "--task", "glue9", "--train-file", "TRAIN", "--dev-file", "DEV"], "--task: one of cola, "),
    (
        ["finetune", "NOWHERE", "--task", "sst2", "--train-file", "TRAIN", "--dev-file", "DEV"],
        "start: no such folder: ",
    ),
    (["finetune", "BERT", "--task", "sst2", "--train-file", "TRAIN", "--dev-file", "no.tsv"], "--dev-file: a file of "),
    (
        ["finetune", "BERT", "--task", "sst2", "--train-file", "TRAIN", "--dev-file", "DEV", "--test-file", "no.tsv"],
        "no.tsv",
    ),
    (["finetune", "--dry-run", "--search", "seed=1"], "argument --search: not allowed with argument --dry-run"),
    (["finetune", "TRAINED2", "--run", "TRAINED"], "holds a run with another configuration: start (now "),
    (["finetune", "--run", "TRAINED", "--recipe", "gpt1-paper"], "recipe (now 'gpt1-paper', there 'bert-paper')"),
    (["pretrain", "--run", "TRAINED"], "holds a fine-tuning run; fastlm finetune --run "),
    (["finetune", "--run", "TRAINED", "--search", "rate=1"], "search: OPTION=VALUE,VALUE,... of an option of finetune"),
    (["predict", "BERT", "TEST"], "holds no fine-tuned model (it has no task.json)"),
    (["predict", "TRAINED", "TRAIN", "--task", "snli", "--submission", "s"], "snli is no benchmark that takes files"),
    (["predict", "TRAINED", "--submission", "s"], "submission: a file of examples expected"),
    (["evaluate", "TRAINED", "TEST"], "TEST"),
    (["evaluate", "TRAINED", "TRAIN", "--task", "squad2"], "squad2 is for span, but the model in "),
    (["predict", "TRAINED", "TRAIN", "--task", "conll2003"], "was fine-tuned for classification: give a format of"),
    (["evaluate", "TRAINED", "TRAIN", "--task", "jsonl", "--kind", "choice"], "jsonl is for choice, but the model in "),
]


@pytest.mark.parametrize(("arguments", "sentence"), USAGE)
def test_an_error_is_one_sentence(files, trained, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    paths = {"BERT": files.bert, "TRAIN": files.train, "DEV": files.dev, "TEST": files.test, "TRAINED": trained}
    before = sorted(trained.rglob("*"))
    code, _, err = main(capsys, *(paths.get(argument, argument) for argument in arguments))
    assert code == cli.USAGE_ERROR and len(err) == 1 and err[0].startswith("fastlm")
    assert str(paths.get(sentence, sentence)) in err[0]
    assert sorted(trained.rglob("*")) == before and not RunFolder(tmp_path / "runs" / "sst2").begun()


def test_a_label_that_the_task_does_not_have_is_named_with_its_line(files, tmp_path, capsys):
    bad = write_tsv(tmp_path / "bad.tsv", [("sentence", "label"), *ROWS[:3], ("a good film", "7"), *ROWS[3:]])
    code, _, err = main(capsys, *command(files, tmp_path / "run", train_file=bad))
    assert code == cli.USAGE_ERROR and len(err) == 1 and f"{bad}:5" in err[0] and "7" in err[0]


def test_columns_of_a_table_are_remembered(files, tmp_path, capsys):
    records = [{"review": text, "stars": "good" if label else "bad"} for text, label in ROWS]
    table = write_jsonl(tmp_path / "train.jsonl", records)
    options = {"task": "jsonl", "train_file": table, "dev_file": table, "steps": 2}
    options |= {"text_column": "review", "label_column": "stars"}
    assert main(capsys, *command(files, tmp_path / "run", **options))[0] == 0
    code, out, err = main(capsys, "evaluate", tmp_path / "run", table, "--device", "cpu")
    assert (code, err) == (0, []) and "macro_f1" in out
    unknown = write_jsonl(tmp_path / "unknown.jsonl", [*records[:2], {"review": "a film", "stars": "fair"}])
    code, _, err = main(capsys, "evaluate", tmp_path / "run", unknown, "--device", "cpu")
    assert (code, err) == (2, [f"fastlm: {unknown}:3: unknown label 'fair'; the labels are bad, good"])
    other = write_jsonl(tmp_path / "other.jsonl", [{"words": text} for text, _ in ROWS[:2]])
    code, out, err = main(capsys, "predict", tmp_path / "run", other, "--text-column", "words", "--device", "cpu")
    assert (code, err) == (0, []) and len(out.splitlines()) == 2
