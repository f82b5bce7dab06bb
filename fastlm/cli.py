"""The command line: fastlm pretrain | finetune | evaluate | predict | generate | fill-mask | convert | info."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import fastlm
from fastlm import recipes
from fastlm.commands import (
    BROKEN_PIPE,
    INTERRUPTED,
    USAGE_ERROR,
    convert,
    evaluate,
    fail,
    finetune,
    import_torch,
    predict,
    say,
)
from fastlm.commands.arguments import add_option, seed
from fastlm.recipes import Recipe
from fastlm.run_folder import RunError, RunFolder

# The extra that installs a package.
EXTRAS = dict.fromkeys(("tqdm", "matplotlib", "tokenizers", "safetensors", "numpy"), "train")
EXTRAS |= dict.fromkeys(("sklearn", "scipy", "seqeval"), "finetune") | {"pyarrow": "parquet"}
EXTRAS |= dict.fromkeys(("ftfy", "spacy"), "original")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code. An error that the user can fix is one sentence, without a traceback."""
    try:
        try:
            return _run(_parser().parse_args(arguments))
        finally:  # also after --help, which exits
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, as in `fastlm info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the exit
        return BROKEN_PIPE


def _run(options: argparse.Namespace) -> int:
    try:
        _check_text(options)
        return options.command(options)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS or options.debug:
            raise
        return fail(f"{error.name} is not installed: pip install 'fastlm[{EXTRAS[error.name]}]'")
    except (ValueError, OSError, RuntimeError, OverflowError, MemoryError) as error:
        if options.debug:
            raise
        return fail(_sentence(error))


def _sentence(error: BaseException) -> str:
    """Returns an error's message; that of the system names the file first, without a number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)


def _check_text(options: argparse.Namespace) -> None:
    """Raises ValueError for an argument that is not valid text in the terminal's encoding."""
    for name, value in vars(options).items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"{name.replace('_', '-')}: text in UTF-8 expected, got {text!r}")


# The commands. Each imports what it needs, so that --help and usage errors are fast -----------------------------


def _pretrain(options: argparse.Namespace) -> int:
    RunFolder(options.run or "runs").check_path()
    given = {f.name: getattr(options, f.name) for f in recipes.OPTIONS if hasattr(options, f.name)}
    recipe, folder, note = _chosen_run(options, given)
    import_torch()  # it takes seconds, so errors in the options are reported before it
    from fastlm.device import find_device, is_out_of_memory, memory_of
    from fastlm.train.loop import Interrupted, train
    from fastlm.train.report import markdown

    if note:
        print(note)
    task = recipe.task()
    run = {"record": recipe.to_json(), "name": recipe.name}
    if not folder.report.is_file():
        recipe.check_memory(memory_of(find_device(recipe.placement.device)))
    try:
        result = train(task, recipe.train, recipe.placement, folder.path, **run)
    except Interrupted as interruption:
        return fail(str(interruption), INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"memory: the device has not enough for {recipe.size()}; give smaller values") from error
    command = task.try_command(folder.path)
    made = f"In {folder.path}: model/, metrics.jsonl, loss.png, report.md."
    print(f"\n{markdown(result)}\n{made}" + (f" Try: {command}" if command else ""))
    return 0


def _chosen_run(options: argparse.Namespace, given: dict[str, Any]) -> tuple[Recipe, RunFolder, str | None]:
    """Returns the recipe with the given options, the run folder, and a note on the choice, if any.

    If the folder holds a run with an update, options that are not given keep the values of that run.
    """
    name = getattr(options, "model", recipes.DEFAULT)
    if options.run is not None and (folder := RunFolder(options.run)).begun():
        return _recorded(folder, options).with_options(given), folder, None
    cuda = _cuda_wanted(name, given)
    recipe, why = recipes.resolve(name, cuda=cuda)
    sizes = (recipe.name,) if cuda else recipes.FAMILIES.get(name, ("", recipe.name))[1:]
    folders = [RunFolder(options.run or f"runs/{size}") for size in sizes]
    begun = next((folder for folder in folders if folder.begun()), None)
    if begun is not None:
        return _recorded(begun, options).with_options(given), begun, None
    chosen = recipe.with_options(given)
    if len(sizes) > 1 and recipes.leaves_size_open(given):
        import_torch()
        from fastlm.train.plan import product_rate

        recipe, why = recipes.fitting(name, given.get("minutes"), product_rate())
        chosen = recipe.with_options(given)
    return chosen, RunFolder(options.run or f"runs/{recipe.name}"), why or f"model {recipe.name}"


def _recorded(folder: RunFolder, options: argparse.Namespace) -> Recipe:
    """Returns the recipe of the run in a folder. Raises RunError if --model names another one."""
    record = folder.recorded()
    if "labelled" in record:
        raise RunError(f"run: {folder.path} holds a fine-tuning run; fastlm finetune --run {folder.path} resumes it")
    try:
        recipe = recipes.from_record(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"run: {folder.config_file} was written by another version of fastlm ({error!r})") from error
    asked = getattr(options, "model", recipe.name)
    if recipe.name != asked and recipe.name not in recipes.FAMILIES.get(asked, ()):
        raise RunError(
            f"run: {folder.path} holds a run with another configuration: model (now {asked!r}, there "
            f"{recipe.name!r}); give the same options to resume it, or another --run"
        )
    return recipe


def _cuda_wanted(name: str, given: dict[str, Any]) -> bool:
    """Returns whether a run is for a CUDA device. Imports torch only if the size of the named model depends on it."""
    device = given.get("device", "auto")
    if device != "auto" or name not in recipes.FAMILIES:
        return device == "cuda"
    import_torch()
    import torch

    return torch.cuda.is_available()


def _generate(options: argparse.Namespace) -> int:
    import_torch()
    from fastlm.inference.generate import stream

    given = {name: getattr(options, name) for name in ("tokens", "temperature", "top_k", "top_p", "seed", "device")}
    for piece in stream(options.run, options.prompt, **given, notify=say):
        print(piece, end="", flush=True)
    print()
    return 0


def _fill_mask(options: argparse.Namespace) -> int:
    import_torch()
    from fastlm.inference.fill_mask import fill_mask

    given = {"top": options.top, "device": options.device, "notify": say}
    for number, guesses in enumerate(fill_mask(options.run, options.text, **given), 1):
        print(f"[MASK] {number}: " + "  ".join(f"{guess.token} {guess.probability:.1%}" for guess in guesses))
    return 0


def _info(options: argparse.Namespace) -> int:
    import_torch()
    from fastlm.info import info

    print(info())
    return 0


# The options ---------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parses the arguments; names the command's own help for one that it does not know."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Exits with one sentence, without the list of all options."""
        self.exit(USAGE_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastlm", description="Pretrain and fine-tune language models as their papers did, and use them."
    )
    parser.add_argument("--version", action="version", version=f"fastlm {fastlm.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pretrain = commands.add_parser(
        "pretrain",
        help="pretrain a model, or resume a run",
        description="Pretrains a model on text, or resumes the interrupted run of a run folder. "
        "An option that is not given has the value of the model's recipe (or of the resumed run).",
        argument_default=argparse.SUPPRESS,
    )
    pretrain.add_argument("--run", default=None, help="run folder (default: runs/MODEL)")
    names = ", ".join([*recipes.FAMILIES, *recipes.RECIPES])
    pretrain.add_argument("--model", metavar="NAME", help=f"recipe: {names} (default: {recipes.DEFAULT})")
    for option in recipes.OPTIONS:
        add_option(pretrain, option)
    pretrain.set_defaults(command=_pretrain, parser=pretrain)

    for command in (finetune, evaluate, predict):
        command.add_parser(commands)

    generate = commands.add_parser("generate", help="generate text with a trained decoder")
    generate.add_argument("run", help="run folder of a causal language model")
    generate.add_argument("--prompt", required=True, help="the text to continue")
    generate.add_argument("--tokens", type=int, default=100, help="tokens to generate (%(default)s)")
    generate.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (%(default)s)")
    generate.add_argument("--top-k", type=int, default=40, help="draw among the k likeliest tokens (%(default)s)")
    generate.add_argument(
        "--top-p", type=float, default=None, help="draw among the likeliest tokens whose probabilities sum to p"
    )
    generate.add_argument("--seed", type=seed, default=0, help="seed of the draws (%(default)s)")
    generate.set_defaults(command=_generate, parser=generate)

    fill_mask = commands.add_parser("fill-mask", help="fill the [MASK]s of a text with a trained encoder")
    fill_mask.add_argument("run", help="run folder of a masked language model")
    fill_mask.add_argument("text", help='such as "it is a truth [MASK] acknowledged"')
    fill_mask.add_argument("--top", type=int, default=5, help="guesses for each [MASK] (%(default)s)")
    fill_mask.set_defaults(command=_fill_mask, parser=fill_mask)
    for command in (generate, fill_mask):
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")

    convert.add_parser(commands)
    info = commands.add_parser("info", help="versions, devices, and which backend runs each op and why")
    info.set_defaults(command=_info, parser=info)
    return parser


if __name__ == "__main__":
    sys.exit(main())
