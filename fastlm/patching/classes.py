"""`apply_fastlm_to_bert()` and its like: every model of an architecture that is made afterwards is patched.

They serve code that makes its model itself, such as `AutoModel.from_pretrained`. For a model at hand there is
`fastlm.patch`.
"""

from __future__ import annotations

import functools
from typing import Any

from fastlm.patching.options import PatchOptions
from fastlm.patching.transformers.tables import architecture
from fastlm.patching.tree import patch_tree


def apply(name: str, options: PatchOptions | None = None, **switches: bool | str) -> None:
    """Makes the constructors of an architecture's models patch them. Applying again changes the options.

    Args:
        name: "albert", "bert", "distilbert", "electra", "gpt2", "openai_gpt" or "roberta".
        options, switches: as in `fastlm.patch`.

    Raises TypeError or ValueError for options that `fastlm.patch` refuses.
    """
    options = PatchOptions(**switches) if options is None else options
    base = architecture(name).BASE

    def post_init(self: Any) -> None:
        super(base, self).post_init()
        patch_tree(self, options, own_config=False)  # a trunk inside another model shares its configuration

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
