"""The command line: its commands, and errors of the user, which are one sentence and an exit code."""

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from runs import before_update, losses, one_thread, text, weights

import fastlm
from fastlm import cli
from fastlm.inference.generate import generate
from fastlm.models import GPT1Config
from fastlm.models import load as load_model
from fastlm.recipes import RECIPES
from fastlm.tasks import causal_lm

__all__ = ["one_thread", "text"]  # fixtures
BAR = re.compile(r"step/s|s/step")  # of the progress bar; a slow machine shows seconds per step
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(causal_lm, "NEW_TOKENS", 5)


def main(capsys, *arguments):
    """Runs a command; returns the exit code, stdout, and stderr without the progress bar."""
    capsys.readouterr()
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, [line for line in err.splitlines() if line and not BAR.search(line)]


def options(text, folder, model="gpt1_tiny", **more):
    given = {"model": model, "data": text, "run": folder, "device": "cpu", "precision": "fp32"}
    return [part for name, value in (given | more).items() for part in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text):
    """Returns the run folders of a GPT-1 and a BERT."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_lm, "NEW_TOKENS", 5)
        for model in ("gpt1_tiny", "bert_tiny"):
            folders[model] = tmp_path_factory.mktemp(model) / "run"
            chosen = options(text, folders[model], model, steps=2, validation_fraction=0.2)
            assert cli.main(["pretrain", *map(str, chosen)]) == 0
    return folders


def test_pretrain_reports_and_says_how_to_use_the_model(tmp_path, text, capsys):
    code, out, err = main(capsys, "pretrain", *options(text, tmp_path / "run", steps=3, phases="0.5:8,0.5:16"))
    assert (code, err) == (0, [])
    assert out.startswith("model gpt1_tiny\ntraining a tokenizer of 512 entries on ")
    assert "device cpu, fp32 (as asked)\n3 updates, 0 of warm-up, then cosine decay to 0" in out
    assert "| bigram " in out and "## What it writes" in out
    assert out.endswith(f'Try: fastlm generate {tmp_path / "run"} --prompt "..."\n')
    recorded = (tmp_path / "run" / "config.json").read_text()
    assert "phases" in recorded


def test_an_interrupted_run_goes_on_with_what_it_was_given(tmp_path, text, capsys, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main(capsys, "pretrain", *options(text, whole, steps=5, learning_rate=3e-3))[0] == 0
    with monkeypatch.context() as patch:
        before_update(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        code, _, err = main(capsys, "pretrain", *options(text, folder, steps=5, learning_rate=3e-3))
    assert code == cli.INTERRUPTED
    assert err[-1] == "fastlm: stopped and saved at step 3 of 5; give the same command again to resume"
    code, out, _ = main(capsys, "pretrain", "--run", folder)  # options that are not given keep their values
    assert code == 0 and "resuming at step 3 of 5" in out
    assert losses(folder) == losses(whole) and weights(folder) == weights(whole)


def test_generate(trained, capsys):
    command = ("generate", trained["gpt1_tiny"], "--prompt", "It was", "--tokens", 7, "--device", "cpu")
    code, out, err = main(capsys, *command)
    assert (code, err) == (0, []) and out.startswith("it was")
    assert main(capsys, *command)[1] == out != main(capsys, *command, "--seed", 1)[1]
    assert main(capsys, *command, "--temperature", 0, "--top-k", 3, "--top-p", 0.5)[0] == 0


def test_fill_mask(trained, capsys):
    text = "it was a [MASK] walk with [MASK]."
    code, out, err = main(capsys, "fill-mask", trained["bert_tiny"], text, "--top", 2, "--device", "cpu")
    assert (code, err) == (0, [])
    first, second = out.splitlines()
    assert first.startswith("[MASK] 1: ") and second.startswith("[MASK] 2: ") and first.count("%") == 2


def test_info(capsys):
    code, out, err = main(capsys, "info")
    assert (code, err) == (0, []) and "What backend='auto' takes" in out


@pytest.mark.parametrize("command", [[], ["pretrain"], ["generate"], ["fill-mask"], ["info"]])
def test_help(command, capsys):
    code, out, _ = main(capsys, *command, "--help")
    assert code == 0 and "usage: fastlm" in out


TINY = ["pretrain", "--model", "gpt1_tiny", "--run", "RUN"]
USAGE = [
    ([], "the following arguments are required: COMMAND"),
    (["train"], "argument COMMAND: invalid choice: 'train'"),
    (["pretrain", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
    (["pretrain", "--phases", "0.9:x"], "argument --phases: FRACTION:LENGTH,... expected, such as 0.9:128,0.1:512"),
    (["pretrain", "--decay", "steps"], "argument --decay: invalid choice: 'steps'"),
    (["pretrain", "--gelu", "none"], "gelu: gpt1_small has no such option"),
    (["pretrain", "--hidden", "100", "--heads", "3"], "hidden must be a multiple of heads, got hidden 100 and heads 3"),
    (["pretrain", "--phases", "1:256"], "phases: sequence length 256 is above the 128 of gpt1_small; --context 256 "),
    (["pretrain", "--epochs", "inf"], "epochs: a number above 0, and finite, expected, got inf"),
    (["pretrain", "--learning-rate", "inf"], "fastlm: --learning-rate: a finite number expected, got inf"),
    (["pretrain", "--eps", "inf"], "eps must be a number of at least 0, and finite, got inf"),
    (["pretrain", "--dropout", "1"], "fastlm: dropout must be in [0, 1), got 1.0"),
    (["pretrain", "--attention-dropout", "0.001"], "--attention-dropout is applied in steps of 1/256"),
    (["pretrain", "--vocab-size", "9" * 19], "--vocab-size: at least 1 and below 2^31 expected, got 9999999999999999"),
    (["pretrain", "--hidden", "9" * 30], "hidden must be an integer of at least 1 and below 2^31, got 9999"),
    ([*TINY, "--vocab-size", "2147483647"], "parameters (--vocab-size 2147483647, context 64, layers 2, hidden 64,"),
    ([*TINY, "--layers", "2147483647"], "layers 2147483647, hidden 64, intermediate 256) and 4 sequences of 16 tokens"),
    ([*TINY, "--batch-size", "2147483647"], "and 2147483647 sequences of 16 tokens at a time (--batch-size, acc"),
    ([*TINY, "--context", "2147483647"], "GiB; give smaller values"),
    (["pretrain", "--model", "bert_tiny", "--segments", "1"], "segments: for sentence pairs, at least 2 expected, got"),
    (["pretrain", "--run", "a file/run"], "run: a file is a file; a folder is needed"),
    (["pretrain", "--minutes", "inf"], "minutes: a number above 0, and finite, expected, got inf"),
    (["pretrain", "--seed", "9" * 20], "seed: at least 0 and below 2^63 expected, got 99999999999999999999"),
    (
        ["generate", "GPT", "--prompt", "a", "--seed", "9" * 20],
        "argument --seed: an integer of at least 0",
    ),
    (
        ["generate", "GPT", "--prompt", "a", "--temperature", "1e-42"],
        "temperature: 0 (which takes the likeliest",
    ),
    (["generate", "GPT", "--prompt", "a\udcff"], "prompt: text in UTF-8 expected, got 'a\\udcff'"),
    (["fill-mask", "BERT", "[MASK] \udc80"], "text: text in UTF-8 expected, got '[MASK] \\udc80'"),
    (["pretrain", "--dropouts", "0.1"], "unrecognized arguments: --dropouts 0.1 (see fastlm pretrain --help)"),
    (["pretrain", "--steps", "x"], "invalid int value: 'x' (see fastlm pretrain --help)"),
    (["pretrain", "--model", "gpt5"], "model: one of gpt1, bert, bert_base, "),
    (["pretrain", "--steps", "-1"], "steps: a number above 0, and finite, expected, got -1"),
    (["pretrain", "--steps", "1", "--minutes", "2"], "exactly one of them expected, got steps and minutes"),
    (["pretrain", "--run", "RUN", "--data", "no.txt"], "no.txt: no such file"),
    (["pretrain", "--run", "RUN", "--data", "a.docx"], "a.docx: a file whose name ends in .txt, "),
    (["generate", "RUN"], "the following arguments are required: --prompt"),
    (["generate", "RUN", "--prompt", "a"], "is not a run folder (it has no config.json)"),
    (["generate", "GPT", "--prompt", " "], "prompt: at least one token expected, got ' '"),
    (["generate", "GPT", "--prompt", "a", "--tokens", "0"], "tokens: at least 1 expected, got 0"),
    (["generate", "GPT", "--prompt", "a", "--top-p", "2"], "--top-p: above 0 and at most 1 expected, got 2.0"),
    (["generate", "BERT", "--prompt", "a"], "holds a BERT with 'mlm', 'nsp'; a model with 'lm' is needed"),
    (["fill-mask", "GPT", "a [MASK]"], "holds a GPT1 with 'lm'; a model with 'mlm' is needed"),
    (["fill-mask", "BERT", "a walk"], "text: at least one [MASK] expected, got 'a walk'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), USAGE)
def test_an_error_is_one_sentence(trained, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    folders = {"RUN": tmp_path / "run", "GPT": trained["gpt1_tiny"], "BERT": trained["bert_tiny"]}
    code, _, err = main(capsys, *(folders.get(argument, argument) for argument in arguments))
    assert code == cli.USAGE_ERROR and len(err) == 1 and err[0].startswith("fastlm") and sentence in err[0]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nSee the documentation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
    ],
)
def test_memory_that_runs_out_is_one_sentence(tmp_path, text, capsys, monkeypatch, error):
    def fail():
        raise error

    before_update(monkeypatch, 1, fail)
    code, _, err = main(capsys, "pretrain", *options(text, tmp_path / "run", steps=3))
    assert code == cli.USAGE_ERROR and len(err) == 1
    assert err[0].startswith("fastlm: memory: the device has not enough for 135,168 parameters (--vocab-size 512, ")
    assert err[0].endswith("4 sequences of 16 tokens at a time (--batch-size, accumulation); give smaller values")


def test_an_error_of_the_system_names_the_file_and_no_number(tmp_path, capsys, monkeypatch):
    def fail():
        raise PermissionError(13, "Permission denied", "some/file")

    monkeypatch.setattr(cli, "_info", lambda options: fail())
    assert main(capsys, "info") == (cli.USAGE_ERROR, "", ["fastlm: some/file: permission denied"])


def test_options_in_a_sentence_are_spelled_as_they_are_given_but_not_in_paths(capsys):
    cli.say("batch_size, or a larger validation_fraction: 'batch_size' in a/batch_size/top_k.txt and my_batch_size")
    assert capsys.readouterr().err == (
        "fastlm: --batch-size, or a larger --validation-fraction: 'batch_size' in a/batch_size/top_k.txt and "
        "my_batch_size\n"
    )


def test_version(capsys):
    assert main(capsys, "--version") == (0, f"fastlm {fastlm.__version__}\n", [])


@pytest.mark.parametrize("arguments", [["pretrain", "--help"], ["--version"], ["info"]])
def test_a_reader_that_has_ended_is_no_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-P", "-m", "fastlm.cli", *arguments]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    with open(writer, "wb") as out:
        child = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env=buffered)
    assert (child.returncode, child.stderr) == (cli.BROKEN_PIPE, "")


def test_text_is_printed_as_it_is_generated(trained, capsys, monkeypatch):
    written = []
    monkeypatch.setattr("builtins.print", lambda *text, end="\n", **_: written.append("".join(text) + end))
    cli.main(["generate", str(trained["gpt1_tiny"]), "--prompt", "It was", "--tokens", "20", "--temperature", "9"])
    assert written[-1] == "\n" and sum(map(bool, written[:-1])) > 3
    monkeypatch.undo()
    given = {"tokens": 20, "temperature": 9.0}
    assert "".join(written) == generate(trained["gpt1_tiny"], "It was", **given) + "\n"


def test_debug_shows_where(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        cli.main(["--debug", "generate", str(tmp_path), "--prompt", "a"])


def test_a_bug_is_not_dressed_as_a_mistake_of_the_user(monkeypatch):
    monkeypatch.setattr(cli, "_info", lambda options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info"])


INTERRUPTED = """
import signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            sys.meta_path.remove(self)  # once
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from fastlm import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "command",
    [
        "info",
        "pretrain --model gpt1",
        "pretrain --model bert_tiny",
        "generate run --prompt It",
        "fill-mask run It",
        "evaluate run file",
        "predict run file",
        "convert run folder",
    ],
)
def test_an_interrupt_while_numpy_is_imported_ends_the_command(tmp_path, command):
    """torch, importing numpy, drops the exception."""
    child = [sys.executable, "-P", "-c", INTERRUPTED, *command.split()]
    result = subprocess.run(child, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (cli.INTERRUPTED, "fastlm: interrupted\n")


WITHOUT = """
    import os, sys
    import torch  # once; each fork then goes without one package

    class Blocked:
        def find_spec(self, name, *ignored):
            if name.split(".")[0] == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=missing)

    for missing in ("tqdm", "matplotlib", "tokenizers", "safetensors"):
        child = os.fork()
        if not child:
            sys.meta_path.insert(0, Blocked())
            sys.modules.pop(missing, None)  # torch may have it
            from fastlm import cli

            os._exit(cli.main(sys.argv[1:]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == cli_usage_error, missing
"""


def test_a_missing_extra_is_named_before_any_training(tmp_path, text):
    script = textwrap.dedent(WITHOUT).replace("cli_usage_error", str(cli.USAGE_ERROR))
    arguments = options(text, tmp_path / "run", steps=1)
    command = [sys.executable, "-P", "-c", script, "pretrain", *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line for line in child.stderr.splitlines() if line] == [
        f"fastlm: {name} is not installed: pip install 'fastlm[train]'"
        for name in ("tqdm", "matplotlib", "tokenizers", "safetensors")
    ]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_every_option_of_a_run_is_on_the_command_line():
    parser = cli._parser()
    given = parser.parse_args(["pretrain", "--data", "a.txt", "b.txt", "--batch-size", "8", "--phases", "64"])
    assert (given.data, given.batch_size, given.phases) == (("a.txt", "b.txt"), 8, ((1.0, 64),))
    assert not hasattr(given, "steps")  # options that are not given have the preset's values
    sections = RECIPES["bert_base"].to_json()
    for name, value in {n: v for section in list(sections)[1:] for n, v in sections[section].items()}.items():
        if value is not None and name not in ("data", "phases"):
            flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
            parsed = parser.parse_args(["pretrain", flag, *([] if isinstance(value, bool) else [str(value)])])
            assert getattr(parsed, name) == value


def test_any_size_can_be_built(tmp_path, text, capsys):
    size = {"layers": 3, "hidden": 32, "heads": 4, "intermediate": 48, "context": 20, "dropout": 0.2}
    chosen = options(
        text, tmp_path / "run", **size, attention_dropout=0.0, steps=1, phases="20", validation_fraction=0.2
    )
    assert main(capsys, "pretrain", *chosen)[0] == 0
    built = load_model(tmp_path / "run" / "model").config
    assert built == GPT1Config(vocab_size=built.vocab_size, **size, attention_dropout=0.0, embedding_dropout=0.2)


def test_commands_to_try_quote_a_path_with_spaces(tmp_path, text, capsys):
    code, out, _ = main(capsys, "pretrain", *options(text, tmp_path / "my run", steps=1, validation_fraction=0.2))
    assert code == 0 and out.endswith(f"Try: fastlm generate '{tmp_path / 'my run'}' --prompt \"...\"\n")


def test_a_run_of_another_model_is_named(trained, text, capsys):
    folder = trained["gpt1_tiny"]
    code, _, err = main(capsys, "pretrain", "--run", folder, "--model", "bert_tiny")
    assert code == cli.USAGE_ERROR
    assert "another configuration: model (now 'bert_tiny', there 'gpt1_tiny')" in err[0]
