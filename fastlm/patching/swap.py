"""Gives a module another class in place, and its own class back.

The new class is a subclass of the old one with another `forward`. The module keeps its parameters, buffers, hooks and
names, so optimizers, checkpoints, DDP and `isinstance` go on as before.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fastlm.patching.options import PatchOptions

_OPTIONS = "fastlm_options"  # the attribute of a replaced module that holds its options


class Swapped:
    """Is the base of all replacements: mixins that stand before the module's own class, most with another `forward`.

    switch: the option that turns the replacement on.
    in_model: whether the module is replaced only inside a model of transformers, which makes its masks.
    absorbs: names of children whose work the replacement does itself, so that they are not replaced too.
    original: the module's own class.
    argument_names: the names of the arguments of the original `forward`, without self.
    """

    switch: ClassVar[str]
    in_model: ClassVar[bool] = False
    absorbs: ClassVar[tuple[str, ...]] = ()
    original: ClassVar[type[nn.Module]]
    argument_names: ClassVar[tuple[str, ...]]
    fastlm_options: PatchOptions

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        """Returns why a module must stay as it is, or None if it can be replaced."""
        return None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module's own `forward`, for a replacement that changes something else."""
        return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        mixin = type(self).__mro__[1]
        return _new_module, (mixin, self.original), self.__getstate__()


class Namesake(Swapped):
    """Is the base of the replacements that compute as a module of fastlm.nn, a subclass of torch's of the same name.

    namesake: that module's class.
    """

    namesake: ClassVar[type[nn.Module]]

    @property
    def backend(self) -> str:
        return self.fastlm_options.backend


def find(module: nn.Module, table: Mapping[type, type[Swapped]]) -> type[Swapped] | None:
    """Returns the replacement that a module has, or could have by its class or a base of it; None if there is none."""
    if isinstance(module, Swapped):
        return type(module).__mro__[1]
    if type(module).__module__.startswith("fastlm."):
        return None
    return next((table[c] for c in type(module).__mro__ if c in table), None)


def swap(module: nn.Module, mixin: type[Swapped], options: PatchOptions) -> None:
    """Replaces the class of a module, or the options of a replaced one."""
    if not isinstance(module, Swapped):
        module.__class__ = swapped_class(mixin, type(module))
    setattr(module, _OPTIONS, options)


def restore(module: nn.Module) -> None:
    """Gives a replaced module its own class back."""
    delattr(module, _OPTIONS)
    vars(module).pop("_said", None)  # the warnings of fastlm.nn
    module.__class__ = module.original


@functools.cache
def swapped_class(mixin: type[Swapped], original: type[nn.Module]) -> type[nn.Module]:
    """Returns the subclass of `mixin` and `original`. Its names and the signature of `forward` are the original's.

    Libraries look at both: at the class's name for configurations and for wrapping, at the signature for the columns
    of a dataset. A namesake's own class comes between them.
    """

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    names = tuple(inspect.signature(original.forward).parameters)[1:]
    members = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    members |= {"forward": forward, "original": original, "argument_names": names}
    between = (mixin.namesake,) if issubclass(mixin, Namesake) else ()
    return type(original)(original.__name__, (mixin, *between, original), members)


def _new_module(mixin: type[Swapped], original: type[nn.Module]) -> nn.Module:
    """Makes an empty module of a replaced class, for pickle and deepcopy, which then set its state."""
    cls = swapped_class(mixin, original)
    return cls.__new__(cls)
