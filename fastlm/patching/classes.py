"""`apply_fastlm_to_bert()` and its like: every model of an architecture that is made afterwards is patched.

They serve code that makes its model itself, such as `AutoModel.from_pretrained`. For a model at hand there is
`fastlm.patch`.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from fastlm.patching.options import PatchOptions
from fastlm.patching.transformers.tables import architecture
from fastlm.patching.tree import patch_tree


def apply(name: str, options: PatchOptions | None = None, **switches: bool | str) -> None:
    """Makes the constructors of an architecture's models patch them. Applying again changes the options.

    A model that is made with attn_implementation="eager" keeps its attention.

    Args:
        name: "albert", "bert", "distilbert", "electra", "gpt2", "openai_gpt" or "roberta".
        options, switches: as in `fastlm.patch`.

    Raises TypeError or ValueError for options that `fastlm.patch` refuses.
    """
    options = PatchOptions(**switches) if options is None else options
    base = architecture(name).BASE

    def post_init(self: Any) -> None:
        super(base, self).post_init()
        keeps_attention = self._supports_sdpa and self.config._attn_implementation == "eager"  # SDPA is the default
        chosen = replace(options, attention=False) if keeps_attention else options
        patch_tree(self, chosen, own_config=False)  # a trunk inside another model shares its configuration

    base.post_init = post_init


def revert(name: str) -> None:
    """Ends the effect of `apply` on models that are made afterwards. Those that were made stay patched."""
    base = architecture(name).BASE
    if "post_init" in vars(base):
        del base.post_init


apply_fastlm_to_albert = functools.partial(apply, "albert")
apply_fastlm_to_bert = functools.partial(apply, "bert")
apply_fastlm_to_distilbert = functools.partial(apply, "distilbert")
apply_fastlm_to_electra = functools.partial(apply, "electra")
apply_fastlm_to_gpt2 = functools.partial(apply, "gpt2")
apply_fastlm_to_openai_gpt = functools.partial(apply, "openai_gpt")
apply_fastlm_to_roberta = functools.partial(apply, "roberta")
