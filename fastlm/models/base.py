"""The base class of the models: a trunk with heads, the seeds of a forward, saving and loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from fastlm.backends import checked_name
from fastlm.dropout import draw_seeds
from fastlm.files import named_tensors, write_json
from fastlm.models import files
from fastlm.models.configs import ModelConfig
from fastlm.nn.heads import Head
from fastlm.nn.layout import Layout
from fastlm.ops import _checks


class ModelOutput(NamedTuple):
    """Holds the results of a forward."""

    loss: Tensor | None  # the sum of the losses, None if there are none
    losses: dict[str, Tensor]  # by head, for each head whose targets were given
    hidden: Tensor  # (B, S, E), where rows beyond a sequence's length hold no meaningful values; or packed (T, E)


class Model(nn.Module):
    """Joins a trunk, which turns tokens into hidden states, and named heads on it.

    Each head is an attribute of the same name, so its parameters are "<head>.<parameter>" in files. The constructor of
    a subclass makes the trunk, then calls `add_heads` and `initialise`. A subclass defines `embed`, and also
    `block_calls` if its blocks are shared.
    """

    config_class: ClassVar[type[ModelConfig]]
    takes_segments: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, *, backend: str = "auto", keep_sum: bool = True):
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        self.config, self.backend, self.keep_sum = config, checked_name(backend), keep_sum
        self.head_names: tuple[str, ...] = ()
        self.companions: dict[str, Any] = {}  # JSON files that `save` writes beside config.json: {name: content}

    # For subclasses to define ------------------------------------------------------------------------------------

    def pretraining_heads(self) -> dict[str, Head]:
        """Returns fresh heads by name: those that the paper pretrains the model with."""
        raise TypeError(f"{type(self).__name__} has no pretraining heads; give it heads")

    def embed(self, tokens: Tensor, segments: Tensor | None, layout: Layout, seed: Tensor | None) -> Tensor:
        """Returns the input of the first block, (B, S, E) or packed (T, E)."""
        raise TypeError(f"{type(self).__name__} has no embedding")

    def block_calls(self) -> Sequence[nn.Module]:
        """Returns the blocks in the order of their calls. A shared block is listed once per call."""
        return self.blocks

    def initialise(self, module: nn.Module) -> None:
        """Initialises the parameters of the model, or of a fresh head, for the start of training."""
        raise TypeError(f"{type(self).__name__} has no initialisation")

    # Trunk and heads ---------------------------------------------------------------------------------------------

    def add_heads(self, heads: Mapping[str, Head] | None) -> None:
        """Attaches heads by name; None attaches `pretraining_heads()`.

        Raises ValueError for a name that cannot be a head's, TypeError for an object that is not a head, and the errors
        of `Head.check_model`.
        """
        for name, head in (self.pretraining_heads() if heads is None else heads).items():
            if not isinstance(head, Head):
                raise TypeError(f"heads: {name!r} must be a fastlm.nn.Head, got {type(head).__name__}")
            if not name.isidentifier():
                raise ValueError(f"heads: a Python name expected for a head, got {name!r}")
            if hasattr(self, name):
                raise ValueError(
                    f"heads: {name!r} is an attribute of {type(self).__name__}, so no head can have the name"
                )
            head.check_model(self)
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
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        seeds: Tensor | None = None,
        first_sequence: Tensor | None = None,
        **targets: Tensor | None,
    ) -> ModelOutput:
        """Computes the hidden states, and the loss of each head whose targets are given.

        A batch is padded, tokens (B, S) with lengths, or packed, tokens (T,) with cu_seqlens. Both give the same losses
        and gradients, as far as nothing is dropped. Attention's dropout depends on sequence and position, so it also
        draws the same masks. The other masks depend on the row, b * S + s or the packed one, and differ.

        Args:
            tokens: (B, S) int64, S at most the context, padded on the right; or (T,), all sequences behind one another.
            segments: int64 of the shape of tokens, by default 0 everywhere, for models that have segments.
            lengths: (B,) int32, valid tokens of each padded sequence, by default S.
            cu_seqlens: (B + 1,) int32, the first packed row of each sequence, and T at the end.
            max_seqlen: an upper bound of the lengths of packed sequences, known on the host, by default the context.
            seeds: (dropout_sites,) int64, one per dropout site; by default drawn in training.
            first_sequence: (1,) int64 on the model's device, the index of the first sequence in the whole batch, by
                default 0. With it, and the same seeds, micro-batches padded to the same S draw the masks that the whole
                batch would draw. Packed ones draw attention's; their rows count from first_sequence * context.
            targets: the targets of the heads' losses, by the names in `Head.targets`.

        Raises:
            TypeError, ValueError: an argument has a wrong dtype, shape or device, or (checked on the CPU only) a value
                out of range; no head takes a target; a head gets only some of its targets.
        """
        layout = self._checked_layout(tokens, segments, lengths, cu_seqlens, max_seqlen, first_sequence)
        arguments = self._arguments_by_head(targets, layout)
        for name, given in arguments.items():
            getattr(self, name).check(self, tokens, **given)
        seeds_of = self._split_seeds(seeds)
        hidden = self._hidden(tokens, segments, layout, seeds_of[""])
        losses = {}
        for name, given in arguments.items():
            head = getattr(self, name)
            dropout = {"seeds": seeds_of[name]} if head.dropout_sites else {}
            losses[name] = head.loss(self, hidden, **given, **dropout)
        return ModelOutput(sum(losses.values()) if losses else None, losses, hidden)

    def logits(self, head: str, hidden: Tensor, *args: Any) -> Any:
        """Returns the logits of a head for hidden states (B, S, E) or (T, E); `args` go to the head's `logits`."""
        if head not in self.head_names:
            raise ValueError(f"head: one of {', '.join(self.head_names) or '(none)'} expected, got {head!r}")
        return getattr(self, head).logits(self, hidden, *args)

    def pooled(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Returns what heads on whole sequences read, (..., E) for rows (...) int64: rows of hidden.flatten(0, -2)."""
        return hidden.flatten(0, -2).index_select(0, rows.flatten()).unflatten(0, rows.shape)

    def _hidden(
        self, tokens: Tensor, segments: Tensor | None, layout: Layout, seeds: Sequence[Tensor | None]
    ) -> Tensor:
        x, used = self.embed(tokens, segments, layout, seeds[0]), 1
        for block in self.block_calls():
            x = block(x, layout, seeds[used : used + block.dropout_sites])
            used += block.dropout_sites
        return x

    def _arguments_by_head(self, targets: Mapping[str, Tensor | None], layout: Layout) -> dict[str, dict[str, Any]]:
        """Returns the targets of each head that has all of its own, and the layout if it reads that."""
        given = {name: target for name, target in targets.items() if target is not None}
        # torch 2.11 cannot compile a comparison of `given.keys()` with a set.
        served = {n: h for n, h in self.heads.items() if h.targets and all(t in given for t in h.targets)}
        unused = given.keys() - {target for head in served.values() for target in head.targets}
        for head in self.heads.values():
            if unused.intersection(head.targets):
                together = " and ".join(head.targets)
                raise ValueError(f"{type(self).__name__}: {together} go together: give all of them or none")
        if unused:
            taken = ", ".join(dict.fromkeys(t for head in self.heads.values() for t in head.targets)) or "none"
            names = ", ".join(name for name in given if name in unused)
            raise TypeError(f"{type(self).__name__}: no head takes {names} (its heads take: {taken})")
        layouts = {"layout": layout}
        return {n: {t: given[t] for t in h.targets} | (layouts if h.reads_layout else {}) for n, h in served.items()}

    # Dropout -----------------------------------------------------------------------------------------------------

    @property
    def dropout_sites(self) -> int:
        """Returns the number of seeds that a forward uses: for the embedding, each call of a block, and each head."""
        return sum(self._sites().values())

    def draw_seeds(self) -> Tensor | None:
        """Draws seeds for a forward, (dropout_sites,) int64; None if nothing is dropped."""
        config = self.config
        own = config.dropout or config.attention_dropout or config.embedding_dropout
        if not self.training or not (own or any(head.dropout_sites for head in self.heads.values())):
            return None
        return draw_seeds(self.dropout_sites, next(self.parameters()).device)

    def _sites(self) -> dict[str, int]:
        """Returns the number of dropout sites of the trunk, under "", and of each head."""
        trunk = 1 + sum(block.dropout_sites for block in self.block_calls())
        return {"": trunk, **{name: head.dropout_sites for name, head in self.heads.items()}}

    def _split_seeds(self, seeds: Tensor | None) -> dict[str, Sequence[Tensor | None]]:
        """Returns one seed per dropout site, for the trunk ("") and each head: views of `seeds` or drawn, or None."""
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
        """Writes config.json, model.safetensors and `companions`, each atomically; a tied weight is stored once.

        Raises OSError if the disk is full or the folder cannot be written.
        """
        files.write(folder, self.config.to_json(), named_tensors(self))
        for name, content in self.companions.items():
            write_json(Path(folder) / name, content)

    @classmethod
    def load(cls, folder: str | Path, heads: Mapping[str, Head] | None = None, *, backend: str = "auto") -> Self:
        """Loads a model that `save` wrote, on the CPU, in the dtype it had. Pickles are never loaded.

        heads: by name; None takes `pretraining_heads()`. A head for whose name the file has tensors gets those; another
        one stays freshly initialised. Heads of the file that are not named are left out.

        Raises FileNotFoundError, or ValueError for a truncated or foreign file.
        """
        config, weights = cls.read_config(folder), files.read_weights(folder)
        return cls.from_weights(config, weights, heads, backend=backend, source=str(Path(folder) / files.WEIGHTS))

    @classmethod
    def read_config(cls, folder: str | Path) -> ModelConfig:
        """Returns the configuration in a model's folder. Raises FileNotFoundError or ValueError, naming the file."""
        values = files.read_config(folder)
        if values.get("model_type") != cls.config_class.model_type:
            given = f"{values.get('model_type')!r}"
            raise ValueError(f"{folder}: a {cls.config_class.model_type} model expected, its config.json has {given}")
        try:
            return cls.config_class.from_json(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{Path(folder) / files.CONFIG}: {error}") from error

    @classmethod
    def from_weights(
        cls,
        config: ModelConfig,
        weights: dict[str, Tensor],
        heads: Mapping[str, Head] | None = None,
        *,
        backend: str = "auto",
        source: str = "weights",
    ) -> Self:
        """Builds a model whose parameters are the given tensors, not copies; `heads` as in `load`.

        source: the origin of the weights, named in errors. Raises ValueError if the tensors are not those of the model.
        """
        with torch.device("meta"):
            model = cls(config, heads, backend=backend)
        files.assign_weights(model, weights if heads is None else _fill_heads(model, weights), source)
        return model

    # Checks ------------------------------------------------------------------------------------------------------

    def _checked_layout(
        self,
        tokens: Tensor,
        segments: Tensor | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        first_sequence: Tensor | None,
    ) -> Layout:
        """Returns where the sequences lie. Raises TypeError or ValueError for inputs that `forward` does not take."""
        name, context = type(self).__name__, self.config.context
        packed = cu_seqlens is not None
        expected = "(T,) with T >= 1 and cu_seqlens" if packed else f"(B, S) with 1 <= S <= {context}"
        fits = isinstance(tokens, Tensor) and tokens.ndim == (1 if packed else 2) and tokens.shape[-1] >= 1
        if not fits or (not packed and tokens.shape[1] > context):
            given = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"{name}: tokens must be {expected}, got {given}")
        self.check_ids("tokens", tokens, tokens.shape, self.config.vocab_size)
        if segments is not None and not self.takes_segments:
            raise TypeError(f"{name}: segments given, but the model has no segment embedding")
        self.check_ids("segments", segments, tokens.shape, getattr(self.config, "segments", 1))
        if packed:
            max_seqlen = self._checked_packing(tokens, lengths, cu_seqlens, max_seqlen)
        else:
            if max_seqlen is not None:
                raise ValueError(f"{name}: max_seqlen goes with cu_seqlens")
            self.check_ids("lengths", lengths, tokens.shape[:1], tokens.shape[1] + 1, dtype=torch.int32)
        stride = context if packed else tokens.shape[1]
        first_row = None if first_sequence is None else first_sequence * stride
        return Layout(lengths, cu_seqlens, max_seqlen, first_sequence, first_row)

    def _checked_packing(
        self, tokens: Tensor, lengths: Tensor | None, cu_seqlens: Tensor, max_seqlen: int | None
    ) -> int:
        """Returns the bound of the lengths of packed sequences."""
        name, context = type(self).__name__, self.config.context
        if lengths is not None:
            raise ValueError(f"{name}: give lengths (padded tokens) or cu_seqlens (packed tokens), not both")
        max_seqlen = context if max_seqlen is None else _checks.as_integer(name, "max_seqlen", max_seqlen)
        if not 1 <= max_seqlen <= context:
            raise ValueError(f"{name}: max_seqlen must lie in [1, {context}], the context, got {max_seqlen}")
        _checks.check_offsets(name, cu_seqlens, tokens, max_seqlen)
        return max_seqlen

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
        """Raises TypeError or ValueError unless `ids` is None or has this shape and dtype and the model's device.

        On the CPU also checks that each id is in [0, end) or equals `ignore`.
        """
        model = type(self).__name__
        _checks.check_integers(model, name, ids, next(self.parameters()), torch.Size(shape), dtype)
        _checks.check_range(model, name, ids, 0, end, ignore=ignore)


def _fill_heads(model: Model, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the trunk's tensors and those of the model's heads; heads that `weights` lacks stay fresh."""
    trunk = {name.partition(".")[0] for name, _ in model.named_children()} - set(model.head_names)
    present = {name.partition(".")[0] for name in weights}
    kept = {n: t for n, t in weights.items() if n.partition(".")[0] in trunk | set(model.head_names)}
    dtype = next(iter(kept.values())).dtype if kept else torch.float32
    for name in set(model.head_names) - present:
        fresh = getattr(model, name).named_parameters(prefix=name)
        kept |= {n: p.detach().to(dtype) for n, p in fresh}
    return kept
