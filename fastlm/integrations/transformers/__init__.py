"""Reads and writes folders of Hugging Face's transformers: configuration, tensors, heads with labels, tokenizer.

transformers is not imported: a model is the files of its folder.
"""

from fastlm.integrations.transformers.config import export_config, import_config
from fastlm.integrations.transformers.heads import find_class
from fastlm.integrations.transformers.reading import Pretrained, from_pretrained, load, read_task
from fastlm.integrations.transformers.weights import convert, export_weights, import_weights
from fastlm.integrations.transformers.writing import save, save_pretrained

__all__ = [
    "Pretrained",
    "convert",
    "export_config",
    "export_weights",
    "find_class",
    "from_pretrained",
    "import_config",
    "import_weights",
    "load",
    "read_task",
    "save",
    "save_pretrained",
]
