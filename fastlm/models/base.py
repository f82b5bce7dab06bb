"""What the models share: a trunk with heads, the seeds of a forward, saving and loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from fastlm.dropout import draw_seeds
from fastlm.files import named_tensors
from fastlm.models import files
from fastlm.models.configs import ModelConfig
from fastlm.nn.heads import Head
from fastlm.ops import _checks


class ModelOutput(NamedTuple):
    """What a model returns."""

    loss: Tensor | None  # the sum of the losses, None where there are none
    losses: dict[str, Tensor]  # of each head whose targets were given, by its name
    hidden: Tensor  # (B, S, E); rows past a sequence's length mean nothing


class Model(nn.Module):
    """Base of the models: a trunk, from tokens to hidden states, and named heads on it.

    A head is an attribute under its name, so that its parameters are "<head>.<parameter>" in files. A subclass makes
    its trunk, then calls `add_heads`, then `initialise`; it defines `embed`, and `block_calls` where blocks are shared.
    """

    config_class: ClassVar[type[ModelConfig]]
    takes_segments: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, *, backend: str = "auto", keep_sum: bool = True):
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        self.config, self.backend, self.keep_sum = config, backend, keep_sum
        self.head_names: tuple[str, ...] = ()

    # What a subclass defines -------------------------------------------------------------------------------------

    def pretraining_heads(self) -> dict[str, Head]:
        """The heads that the model was pretrained with in its paper."""
        raise TypeError(f"{type(self).__name__} has no pretraining heads; give it heads")

    def embed(self, tokens: Tensor, segments: Tensor | None, seed: Tensor | None, first_row: Tensor | None) -> Tensor:
        """Returns the input of the first block (B, S, E)."""
        raise TypeError(f"{type(self).__name__} has no embedding")

    def block_calls(self) -> Sequence[nn.Module]:
        """The blocks in the order of their calls; a shared block stands there once per call."""
        return self.blocks

    def initialise(self, module: nn.Module) -> None:
        """Gives the parameters of the model, or of a fresh head, the values that training starts from."""
        raise TypeError(f"{type(self).__name__} has no initialisation")

    # Trunk and heads ---------------------------------------------------------------------------------------------

    def add_heads(self, heads: Mapping[str, Head] | None) -> None:
        """Attaches heads, None: those of the paper's pretraining. Raises ValueError for a name that is taken."""
        for name, head in (self.pretraining_heads() if heads is None else heads).items():
            if hasattr(self, name) or "." in name:
                raise ValueError(f"heads: {name!r} cannot name a head of {type(self).__name__}, which has it already")
            self.add_module(name, head)
            self.head_names += (name,)

    @property
    def heads(self) -> dict[str, Head]:
        return {name: getattr(self, name) for name in self.head_names}

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        seeds: Tensor | None = None,
        first_sequence: Tensor | None = None,
        **targets: Tensor | None,
    ) -> ModelOutput:
        """Hidden states, and the loss of each head whose targets are given.

        Args:
            tokens: (B, S) int64, S at most the context, padded on the right.
            segments: (B, S) int64, by default 0 everywhere, for models that have segments.
            lengths: (B,) int32, valid tokens of each sequence, by default S.
            seeds: (dropout_sites,) int64, one per dropout site; in training they are drawn where not given.
            first_sequence: (1,) int64 on the model's device, the number of the first sequence in the whole batch, by
                default 0: with the same seeds the parts of a batch drop what the whole would drop.
            targets: what the heads' losses take, by the names that the heads declare.

        Raises:
            TypeError, ValueError: an argument's dtype, shape, device or (on the CPU) range is wrong, or targets that
                no head takes, or a part of what a head takes.
        """
        self._check_inputs(tokens, segments, lengths)
        asked = self._asked(targets)
        for name, given in asked.items():
            getattr(self, name).check(self, tokens, **given)
        seeds_of = self._split_seeds(seeds)
        hidden = self._hidden(tokens, segments, lengths, seeds_of[""], first_sequence)
        losses = {}
        for name, given in asked.items():
            head = getattr(self, name)
            dropout = {"seeds": seeds_of[name]} if head.dropout_sites else {}
            losses[name] = head.loss(self, hidden, **given, **dropout)
        return ModelOutput(sum(losses.values()) if losses else None, losses, hidden)

    def logits(self, head: str, hidden: Tensor, *args: Any) -> Tensor:
        """The logits of a head for hidden states (B, S, E); `args` as that head's `logits` takes them."""
        if head not in self.head_names:
            raise ValueError(f"head: one of {', '.join(self.head_names) or '(none)'} expected, got {head!r}")
        return getattr(self, head).logits(self, hidden, *args)

    def _hidden(
        self,
        tokens: Tensor,
        segments: Tensor | None,
        lengths: Tensor | None,
        seeds: Sequence[Tensor | None],
        first_sequence: Tensor | None,
    ) -> Tensor:
        first_row = None if first_sequence is None else first_sequence * tokens.shape[1]
        x, used = self.embed(tokens, segments, seeds[0], first_row), 1
        for block in self.block_calls():
            x = block(x, lengths, seeds[used : used + block.dropout_sites], first_sequence, first_row)
            used += block.dropout_sites
        return x

    def _asked(self, targets: Mapping[str, Tensor | None]) -> dict[str, dict[str, Tensor]]:
        """The targets of each head that has any, by head."""
        given = {name: target for name, target in targets.items() if target is not None}
        asked = {}
        for name, head in self.heads.items():
            mine = {target: given.pop(target) for target in head.targets if target in given}
            if len(mine) == len(head.targets) > 0:
                asked[name] = mine
            elif mine:
                together = " and ".join(head.targets)
                raise ValueError(f"{type(self).__name__}: {together} go together: give all of them or none")
        if given:
            taken = ", ".join(target for head in self.heads.values() for target in head.targets) or "none"
            raise TypeError(f"{type(self).__name__}: no head takes {', '.join(given)} (its heads take: {taken})")
        return asked

    # Dropout -----------------------------------------------------------------------------------------------------

    @property
    def dropout_sites(self) -> int:
        """Seeds that a forward uses: the embedding's, those of each call of a block, those of each head."""
        return sum(self._sites().values())

    def draw_seeds(self) -> Tensor | None:
        """Fresh seeds for a forward, (dropout_sites,) int64; None where nothing is dropped."""
        config = self.config
        own = config.dropout or config.attention_dropout or config.embedding_dropout
        if not self.training or not (own or any(head.dropout_sites for head in self.heads.values())):
            return None
        return draw_seeds(self.dropout_sites, next(self.parameters()).device)

    def _sites(self) -> dict[str, int]:
        """Dropout sites of the trunk, under "", and of each head."""
        trunk = 1 + sum(block.dropout_sites for block in self.block_calls())
        return {"": trunk, **{name: head.dropout_sites for name, head in self.heads.items()}}

    def _split_seeds(self, seeds: Tensor | None) -> dict[str, Sequence[Tensor | None]]:
        """One seed per site, for the trunk and each head: a view of `seeds` or of fresh ones, or None."""
        sites = self._sites()
        count = sum(sites.values())
        if seeds is not None and seeds.shape != (count,):
            raise ValueError(f"seeds must have shape ({count},), one per dropout site, got {tuple(seeds.shape)}")
        drawn = self.draw_seeds() if seeds is None or not self.training else seeds
        each = (None,) * count if drawn is None else drawn.split(1)
        parts, used = {}, 0
        for name, number in sites.items():
            parts[name], used = each[used : used + number], used + number
        return parts

    # Files -------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, each whole or not at all; a tied weight is stored once.

        Raises OSError where the disk is full or the folder cannot be written.
        """
        files.write(folder, self.config.to_json(), named_tensors(self))

    @classmethod
    def load(cls, folder: str | Path, heads: Mapping[str, Head] | None = None, *, backend: str = "auto") -> Self:
        """The model that `save` wrote, on the CPU, in the dtype it had.

        heads: None takes the heads of the model's pretraining. Heads that are given are filled where the file has
        tensors under their names, and stay fresh where it has none; the file's other heads are left out.

        Raises FileNotFoundError, or ValueError for a truncated or foreign file; pickles are never loaded.
        """
        values = files.read_config(folder)
        if values.get("model_type") != cls.config_class.model_type:
            given = f"{values.get('model_type')!r}"
            raise ValueError(f"{folder}: a {cls.config_class.model_type} model expected, its config.json has {given}")
        try:
            config = cls.config_class.from_json(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{Path(folder) / files.CONFIG}: {error}") from error
        weights, what = files.read_weights(folder), str(Path(folder) / files.WEIGHTS)
        return cls.from_weights(config, weights, heads, backend=backend, what=what)

    @classmethod
    def from_weights(
        cls,
        config: ModelConfig,
        weights: dict[str, Tensor],
        heads: Mapping[str, Head] | None = None,
        *,
        backend: str = "auto",
        what: str = "weights",
    ) -> Self:
        """A model whose parameters are the given tensors, not copies; `heads` as in `load`.

        Raises ValueError, beginning with `what`, where the tensors are not those of the model.
        """
        with torch.device("meta"):
            model = cls(config, heads, backend=backend)
        files.assign_weights(model, weights if heads is None else _with_heads(model, weights), what)
        return model

    # Checks ------------------------------------------------------------------------------------------------------

    def _check_inputs(self, tokens: Tensor, segments: Tensor | None, lengths: Tensor | None) -> None:
        """(B, S) int64 with 1 <= S <= context, and on the CPU every one in the vocabulary."""
        name = type(self).__name__
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.config.context:
            given = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"{name}: tokens must be (B, S) with 1 <= S <= {self.config.context}, got {given}")
        self.check_ids("tokens", tokens, tokens.shape, self.config.vocab_size)
        if segments is not None and not self.takes_segments:
            raise TypeError(f"{name}: segments given, but the model has no segment embedding")
        self.check_ids("segments", segments, tokens.shape, getattr(self.config, "segments", 1))
        self.check_ids("lengths", lengths, tokens.shape[:1], tokens.shape[1] + 1, dtype=torch.int32)

    def check_ids(
        self,
        name: str,
        ids: Tensor | None,
        shape: Sequence[int],
        end: int,
        *,
        ignore: int | None = None,
        dtype: torch.dtype = torch.int64,
    ) -> None:
        """None, or integers of this shape and dtype on the model's device; on the CPU, in [0, end) or `ignore`."""
        model = type(self).__name__
        _checks.check_integers(model, name, ids, next(self.parameters()), torch.Size(shape), dtype)
        _checks.check_range(model, name, ids, 0, end, ignore=ignore)


def _with_heads(model: Model, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trunk's tensors, those of the model's heads, and the fresh parameters of heads that `weights` lacks."""
    trunk = {name.partition(".")[0] for name, _ in model.named_children()} - set(model.head_names)
    present = {name.partition(".")[0] for name in weights}
    kept = {n: t for n, t in weights.items() if n.partition(".")[0] in trunk | set(model.head_names)}
    dtype = next(iter(kept.values())).dtype if kept else torch.float32
    for name in set(model.head_names) - present:
        fresh = getattr(model, name).named_parameters(prefix=name)
        kept |= {n: p.detach().to(dtype) for n, p in fresh}
    return kept
