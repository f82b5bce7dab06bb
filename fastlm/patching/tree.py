"""`patch` replaces what it can in a tree of modules; `unpatch` puts everything back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from fastlm.patching import torch_modules
from fastlm.patching.options import PatchOptions
from fastlm.patching.report import Left, Replaced, Report
from fastlm.patching.swap import Swapped, find, restore, swap
from fastlm.patching.transformers import tables


def patch(model: nn.Module, options: PatchOptions | None = None, **switches: bool | str) -> Report:
    """Replaces modules of a model by fastlm's, in place. `unpatch` undoes it.

    Parameters, buffers, hooks and names stay the same objects, so optimizers and checkpoints go on as before. In
    models of transformers, attention and the loss are replaced too, and training with labels returns no logits
    (`return_logits=True` keeps them). A module that cannot be replaced stays as it is, and the report says why.
    Patching a patched model again changes its options.

    Args:
        model: any module, also one wrapped by DDP, PEFT or torch.compile.
        options: a `PatchOptions`, or its fields as keyword arguments: attention, layer_norm, gelu, embeddings, loss,
            return_logits (True or False) and backend.

    Returns:
        A `Report`: `print(report)` shows what was replaced, what was left, and why.

    Raises:
        TypeError: an argument is not a module, or not an option.
        ValueError: an unknown backend.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch: a torch.nn.Module expected, got a {type(model).__name__}")
    if options is not None and switches:
        raise TypeError(f"patch: give options or {', '.join(switches)}, not both")
    return patch_tree(model, PatchOptions(**switches) if options is None else options)


def patch_tree(model: nn.Module, options: PatchOptions, *, own_config: bool = True) -> Report:
    """Replaces modules as `patch` does. `own_config`: whether a model whose attention is replaced gets a copy of its
    configuration, so that other models with the same one stay as they are.
    """
    report, implementation = Report(type(model).__name__), tables.implementation()
    in_models = implementation.modules_of_models(model) if implementation else frozenset()
    table = torch_modules.REPLACEMENTS | tables.replacements()
    for path, module, mixin in _candidates(model, table):
        if isinstance(module, Swapped):
            report.already += 1
            _patch_again(module, mixin, options)
            continue
        if not getattr(options, mixin.switch):
            continue
        kind, reason = type(module).__name__, _reason_against(module, mixin, table, options, in_models)
        if reason is None:
            swap(module, mixin, options)
            report.replaced.append(Replaced(path, kind, mixin.switch))
        else:
            report.left.append(Left(path, kind, mixin.switch, reason))
    if implementation:
        implementation.update(model, own_config=own_config)
    return report


def unpatch(model: nn.Module) -> Report:
    """Gives every module that `patch` replaced its own class back. The report counts them.

    Raises TypeError for an argument that is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"unpatch: a torch.nn.Module expected, got a {type(model).__name__}")
    report, implementation = Report(type(model).__name__), tables.implementation()
    for module in model.modules():
        if isinstance(module, Swapped):
            restore(module)
            report.restored += 1
    if implementation:
        implementation.update(model)
    return report


def _patch_again(module: Swapped, mixin: type[Swapped], options: PatchOptions) -> None:
    """Changes the options of a replaced module, or restores it if its switch is off now."""
    if getattr(options, mixin.switch):
        swap(module, mixin, options)
    else:
        restore(module)


def _candidates(
    model: nn.Module, table: Mapping[type, type[Swapped]]
) -> Iterator[tuple[str, nn.Module, type[Swapped]]]:
    """Yields path, module and replacement of all modules that have one, except those absorbed by a replaced parent."""
    absorbed: set[int] = set()
    for path, module in list(model.named_modules()):
        mixin = find(module, table)
        if mixin is None or id(module) in absorbed:
            continue
        yield path, module, mixin
        if isinstance(module, Swapped):
            children = (getattr(module, name, None) for name in mixin.absorbs)  # None: a constructor is not at its end
            absorbed |= {id(child) for child in children if child is not None}


def _reason_against(
    module: nn.Module,
    mixin: type[Swapped],
    table: Mapping[type, type[Swapped]],
    options: PatchOptions,
    in_models: frozenset[int],
) -> str | None:
    """Returns why a module must stay as it is, or None."""
    if "forward" in vars(module):
        return "another library has set a forward on the module itself"
    if not any(type(module).forward is c.forward for c in table if table[c] is mixin):
        return "its class has a forward of its own"
    if mixin.in_model and id(module) not in in_models:
        return "the model around it makes its masks; patch the whole model"
    return mixin.reason_against(module, options)
