"""Julia source with the tensors that it reads, and Julia's numbers of the compiled sources."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from regnde._engines.julia import runtime
from regnde._engines.julia.availability import what_to_do
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

    def number(self) -> int:
        """Julia's number of the compiled source; compiles it the first time.

        Raises:
            UnsupportedField: it has Fourier transforms, and FFTW is not installed.
        """
        key = (self.name, self.source)
        if key not in _compiled:
            if self.name and "transform!(" in self.source:
                _load_transforms()
            _compiled[key] = runtime.call(lambda julia: int(julia.bridge_compile(self.source, self.name)))
            if len(_compiled) > MAX_COMPILED:
                runtime.discard(_compiled.popitem(last=False)[1])
        _compiled.move_to_end(key)
        return _compiled[key]


def _load_transforms() -> None:
    if names := runtime.missing(*TRANSFORMS.packages):
        raise UnsupportedField(what_to_do(TRANSFORMS.group, names, TRANSFORMS.reason, TRANSFORMS.instead))
    runtime.load(*TRANSFORMS.packages)


_compiled: OrderedDict[tuple[str, str], int] = OrderedDict()
