"""Julia source with the tensors that it reads, and the handles of the compiled sources."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from regnde._engines.julia import runtime
from regnde._engines.julia.availability import what_to_do
from regnde._engines.julia.handle import Handle
from regnde._engines.julia.needs import TRANSFORMS
from regnde._errors import UnsupportedField

__all__ = ["Code"]

MAX_COMPILED = 64


@dataclass(frozen=True, eq=False)
class Code:
    """A field as Julia code with the tensors that it reads.

    Attributes:
        source: Julia source.
        name: of its functions; "" for a `JuliaField`, whose source is one function.
        tensors: what to pass, in order.
        needs_gradient: which of them get a gradient.
        columns: of a diffusion that is a matrix; 0 for a value of the state's shape.
    """

    source: str
    name: str
    tensors: tuple[Tensor, ...]
    needs_gradient: tuple[bool, ...]
    columns: int = 0

    def handle(self) -> Handle:
        """The compiled source's, which Julia keeps as long as it is referred to; compiles it the first time.

        Raises:
            UnsupportedField: it has Fourier transforms, and FFTW is not installed.
        """
        key = (self.name, self.source)
        handle = _compiled.get(key)
        if handle is None:
            if self.name and "transform!(" in self.source:
                _load_transforms()
            made = handle = Handle()
            runtime.call(lambda julia: julia.bridge_compile(made.number, self.source, self.name))
        _compiled.pop(key, None)  # to the end; another thread may have taken it out
        _compiled[key] = handle
        while len(_compiled) > MAX_COMPILED:
            _compiled.popitem(last=False)
        return handle


def _load_transforms() -> None:
    if names := runtime.missing(*TRANSFORMS.packages):
        raise UnsupportedField(what_to_do(TRANSFORMS.group, names, TRANSFORMS.reason, TRANSFORMS.instead))
    runtime.load(*TRANSFORMS.packages)


_compiled: OrderedDict[tuple[str, str], Handle] = OrderedDict()
