"""The command line: fastlm pretrain | generate | fill-mask | info."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NoReturn

from fastlm.train.config import PRETRAIN_PRESETS, PretrainConfig, resolve_model

EXTRAS = ("tqdm", "matplotlib", "tokenizers", "safetensors", "numpy")
USAGE_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code. What a user can mend is one sentence on stderr, without a traceback."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS or options.debug:
            raise
        return _fail(f"{error.name} is not installed: pip install 'fastlm[train]'")
    except (ValueError, OSError, RuntimeError) as error:
        if options.debug:
            raise
        return _fail(str(error))


def _fail(sentence: str, code: int = USAGE_ERROR) -> int:
    print(f"fastlm: {sentence}", file=sys.stderr)
    return code


# The commands; each imports what it needs, so that --help and the usage errors are immediate -------------------


def _pretrain(options: argparse.Namespace) -> int:
    import torch

    from fastlm.train.pretrain import Interrupted, pretrain
    from fastlm.train.report import markdown
    from fastlm.train.run import RunFolder

    given = {f.name: getattr(options, f.name) for f in fields(PretrainConfig) if hasattr(options, f.name)}
    cuda = given.get("device", "auto") == "cuda" or (
        given.get("device", "auto") == "auto" and torch.cuda.is_available()
    )
    name, why = resolve_model(given.get("model", "gpt1"), cuda=cuda)
    if "model" in given:
        given["model"] = name
    folder = RunFolder(options.run or f"runs/{name}")
    if folder.begun():  # what is not given is as it was
        config = _configure(folder.recorded_config(), given)
    else:
        config = _configure(PRETRAIN_PRESETS[name], given)
        print(why or f"model {name}")
    try:
        result = pretrain(config, folder.path)
    except Interrupted as interruption:
        return _fail(str(interruption), INTERRUPTED)
    print(f"\n{markdown(result)}\n{_next_steps(folder, config)}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from fastlm.generate import generate

    sampling = {name: getattr(options, name) for name in ("tokens", "temperature", "top_k", "top_p", "seed", "device")}
    print(generate(options.run, options.prompt, **sampling))
    return 0


def _fill_mask(options: argparse.Namespace) -> int:
    from fastlm.fill_mask import fill_mask

    for number, guesses in enumerate(fill_mask(options.run, options.text, top=options.top, device=options.device), 1):
        print(f"[MASK] {number}: " + "  ".join(f"{guess.token} {guess.probability:.1%}" for guess in guesses))
    return 0


def _info(options: argparse.Namespace) -> int:
    from fastlm.info import info

    print(info())
    return 0


def _configure(config: PretrainConfig, given: dict[str, Any]) -> PretrainConfig:
    lengths = {name: given[name] for name in ("steps", "minutes", "epochs") if name in given}
    return replace(config.with_length(**lengths) if lengths else config, **given)


def _next_steps(folder: Any, config: PretrainConfig) -> str:
    example = (
        f'fastlm generate {folder.path} --prompt "..."'
        if config.model.startswith("gpt1")
        else f'fastlm fill-mask {folder.path} "... [MASK] ..."'
    )
    return f"In {folder.path}: model/, metrics.jsonl, loss.png, report.md. Try: {example}"


# The options ---------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the list of all options."""
        self.exit(USAGE_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastlm", description="Pretrain GPT-1 and BERT as their papers did, and use them.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pretrain = commands.add_parser(
        "pretrain",
        help="pretrain a model, or resume a run",
        description="Pretrains a model on text. With the run folder of an interrupted run it goes on with that run. "
        "An option that is not given has the value of the model's preset (or of the run that is resumed).",
        argument_default=argparse.SUPPRESS,
    )
    pretrain.add_argument("--run", default=None, help="run folder (default: runs/MODEL)")
    for option in fields(PretrainConfig):
        _add_option(pretrain, option)
    pretrain.set_defaults(command=_pretrain)

    generate = commands.add_parser("generate", help="let a trained GPT-1 write")
    generate.add_argument("run", help="run folder of a GPT-1")
    generate.add_argument("--prompt", required=True, help="the text to go on from")
    generate.add_argument("--tokens", type=int, default=100, help="tokens to write (%(default)s)")
    generate.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest (%(default)s)")
    generate.add_argument("--top-k", type=int, default=40, help="draw among the k likeliest (%(default)s)")
    generate.add_argument("--top-p", type=float, default=None, help="draw among the likeliest that have p together")
    generate.add_argument("--seed", type=int, default=0, help="another one gives another text (%(default)s)")
    generate.set_defaults(command=_generate)

    fill_mask = commands.add_parser("fill-mask", help="let a trained BERT fill the [MASK]s of a text")
    fill_mask.add_argument("run", help="run folder of a BERT")
    fill_mask.add_argument("text", help='such as "it is a truth [MASK] acknowledged"')
    fill_mask.add_argument("--top", type=int, default=5, help="guesses for each [MASK] (%(default)s)")
    fill_mask.set_defaults(command=_fill_mask)
    for command in (generate, fill_mask):
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")

    info = commands.add_parser("info", help="versions, devices, and what serves each op and why")
    info.set_defaults(command=_info)
    return parser


def _add_option(parser: argparse.ArgumentParser, option: Any) -> None:
    kind = option.type.removesuffix(" | None")
    settings: dict[str, Any] = {"help": option.metadata["help"]}
    if "choices" in option.metadata:
        settings["choices"] = option.metadata["choices"]
    elif option.name == "phases":
        settings |= {"type": _phases, "metavar": "FRACTION:LENGTH,..."}
    elif option.name == "data":
        settings |= {"type": str, "nargs": "+", "action": _Tuple, "metavar": "FILE"}
    else:
        settings |= {"type": {"int": int, "float": float, "str": str}[kind], "metavar": kind.upper()}
    parser.add_argument(f"--{option.name.replace('_', '-')}", **settings)


class _Tuple(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _phases(text: str) -> tuple[tuple[float, int], ...]:
    """ "0.9:128,0.1:512", or just "128"."""
    try:
        if ":" not in text:
            return ((1.0, int(text)),)
        pairs = (part.split(":") for part in text.split(","))
        return tuple((float(fraction), int(length)) for fraction, length in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"FRACTION:LENGTH,... expected, such as 0.9:128,0.1:512, got {text!r}"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
