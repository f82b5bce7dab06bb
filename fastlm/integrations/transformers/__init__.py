"""Reads and writes folders of Hugging Face's transformers: configuration, tensors, heads with labels, tokenizer.

transformers is not imported: a model is the files of its folder.
"""

from fastlm.integrations.transformers.reading import Pretrained, from_pretrained, load
from fastlm.integrations.transformers.weights import (
    convert,
    export_config,
    export_weights,
    import_config,
    import_weights,
)
from fastlm.integrations.transformers.writing import save, save_pretrained

__all__ = [
    "Pretrained",
    "convert",
    "export_config",
    "export_weights",
    "from_pretrained",
    "import_config",
    "import_weights",
    "load",
    "save",
    "save_pretrained",
]
