"""Replaces functions of other packages by the drop-ins, in code that is not changed."""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import CellType, FunctionType, ModuleType, TracebackType
from typing import Any, Self

from torch import nn

from regnde._dropin import odeint, odeint_adjoint, odeint_dense, odeint_event
from regnde._dropin_sde import sdeint, sdeint_adjoint

__all__ = ["Installation", "install"]

STANDS_FOR = "_regnde_stands_for"  # attribute of a drop-in while it is in the place of another function: that one
VERSIONS = {"torchdiffeq": "0.2.5+regnde", "torchsde": "0.2.6+regnde"}  # of stand-ins: whose arguments are taken

_LOCK = threading.RLock()  # as loaded modules are, these are the process's


def _copies(package: str, *functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Copies of the drop-ins, which differ from the functions that code imports from regnde itself.

    Their `__module__` is the replaced package's, so that a pickle finds them there.
    """
    found: dict[str, Callable[..., Any]] = {}
    for function in functions:
        assert isinstance(function, FunctionType)
        ours = FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        ours.__kwdefaults__, ours.__doc__ = function.__kwdefaults__, function.__doc__
        ours.__annotations__ = dict(function.__annotations__)
        ours.__module__ = package
        found[function.__name__] = ours
    return found


DROPINS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "torchdiffeq": _copies("torchdiffeq", odeint, odeint_adjoint, odeint_dense, odeint_event),
    "torchsde": _copies("torchsde", sdeint, sdeint_adjoint),
}


class Installation:
    """What `install` replaced. Print it to see; `undo` it; or use it as a context manager, which undoes it.

    Attributes:
        packages: names of the packages.
        stand_ins: those that are not installed, for which an empty module stands.
        replaced: each place where a function was replaced, as text.
    """

    def __init__(self, packages: tuple[str, ...], own: tuple[str, ...], replaced: tuple[str, ...]) -> None:
        self.packages = packages
        self.replaced = replaced
        self.stand_ins = tuple(name for name in packages if _is_stand_in(sys.modules.get(name)))
        self._own = own  # which this call installed; the others were so before

    def __enter__(self) -> Self:
        if not all(_installed(name) for name in self.packages):
            raise ValueError("this installation was undone: call regnde.install again.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._own)

    def __repr__(self) -> str:
        lines = [f"regnde's functions are in {len(self.replaced)} places:", *(f"  {place}" for place in self.replaced)]
        if self.stand_ins:
            lines.append(f"Not installed, so that an empty module stands for it: {', '.join(self.stand_ins)}.")
        if left := [f"{package}.{name}" for package in self.packages for name in _left(package)]:
            lines.append(f"Left as they are: {', '.join(left)}.")
        return "\n".join(lines)

    def undo(self) -> None:
        """Puts the packages' own functions back, also in modules that were imported since.

        Other installations of the same packages are undone with it. A stand-in for a package that is not installed is
        removed; modules that took a function from it keep that function.
        """
        _restore(self.packages)


def install(*packages: str) -> Installation:
    """Puts regnde's drop-ins in the place of another package's functions, in all code that uses them.

    That is in the package itself, so that later imports get them; and wherever a loaded module holds them under
    whatever name: as a global, in a dict or a list that is one, as a class attribute, a default argument, a closure's
    variable, in a `functools.partial`, or as an attribute of an `nn.Module`. Not in local variables of running
    functions, other objects' attributes, and the package's private modules, whose functions work as before.

    A package that is not installed is replaced by an empty module with the drop-ins, so that code which imports it
    runs. Calling `install` again replaces the functions in modules that were loaded since.

    Args:
        packages: `"torchdiffeq"` (`odeint`, `odeint_adjoint`, `odeint_dense`, `odeint_event`), `"torchsde"` (`sdeint`,
            `sdeint_adjoint`), or both.

    Returns:
        An `Installation`. As a context manager it undoes itself, unless the packages were installed before.

    Raises:
        ValueError: for no package or one that there are no drop-ins for.

    Examples:
        >>> import torch, regnde
        >>> with regnde.install("torchdiffeq") as installation, regnde.recording() as log:
        ...     from torchdiffeq import odeint_adjoint as odeint  # any model that does so
        ...     y = odeint(lambda t, y: -y, torch.ones(3), torch.tensor([0.0, 1.0]))
        >>> len(log.solutions), "torchdiffeq.odeint" in installation.replaced
        (1, True)
    """
    if not packages or (unknown := [name for name in packages if name not in DROPINS]):
        known = " and ".join(repr(name) for name in DROPINS)
        given = f"no package {unknown[0]!r}" if packages else "no package"
        raise ValueError(f"install: there are drop-ins for {known}, got {given}.")
    with _LOCK:
        names = tuple(dict.fromkeys(packages))
        own = tuple(name for name in names if not _installed(name))
        pairs: dict[int, _Pair] = {}
        places: list[str] = []
        for package in names:
            module = _module(package)
            for name, ours in DROPINS[package].items():
                present = getattr(module, name, None)
                theirs = vars(ours).setdefault(STANDS_FOR, present)
                if present is None:  # the package does not have it
                    setattr(module, name, ours)
                    places.append(f"{package}.{name}")
                for old in (theirs, present):  # they differ if other code replaced the function after an installation
                    if old is not None and old is not ours:
                        pairs[id(old)] = _Pair(old, ours)
        return Installation(names, own, (*places, *_replace(pairs)))


def _restore(packages: tuple[str, ...]) -> None:
    """Restores the packages' own functions in all places, and removes the stand-ins."""
    with _LOCK:
        pairs: dict[int, _Pair] = {}
        for package in packages:
            module = sys.modules.get(package)
            for name, ours in DROPINS[package].items():
                theirs = vars(ours).pop(STANDS_FOR, None)
                if theirs is not None:
                    pairs[id(ours)] = _Pair(ours, theirs)
                elif getattr(module, name, None) is ours:  # the package does not have it
                    delattr(module, name)
            if _is_stand_in(module):
                del sys.modules[package]
        if pairs:
            _replace(pairs)


# --- packages -------------------------------------------------------------------------------------


def _installed(package: str) -> bool:
    module = sys.modules.get(package)
    return all(getattr(module, name, None) is ours for name, ours in DROPINS[package].items())


def _module(package: str) -> ModuleType:
    """The package, imported, or a stand-in for it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as problem:
        if problem.name != package:  # the package is installed, but one of its dependencies is not
            raise
    module = sys.modules[package] = _StandIn(package)
    return module


class _StandIn(ModuleType):
    """A module in the place of a package that is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(package, f"regnde's drop-ins for {package}, which is not installed.")
        self.__spec__ = ModuleSpec(package, None, origin="regnde")
        self.__version__ = VERSIONS[package]
        if package == "torchsde":
            self.SDEIto, self.SDEStratonovich = _SDEIto, _SDEStratonovich

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self.__name__} is not installed, and regnde's stand-in for it has no {name!r}: pip install "
            f"{self.__name__}."
        )


class _SDEIto(nn.Module):
    """What torchsde's users derive an Ito SDE from."""

    def __init__(self, noise_type: str) -> None:
        super().__init__()
        self.noise_type, self.sde_type = noise_type, "ito"


class _SDEStratonovich(nn.Module):
    """What torchsde's users derive a Stratonovich SDE from."""

    def __init__(self, noise_type: str) -> None:
        super().__init__()
        self.noise_type, self.sde_type = noise_type, "stratonovich"


def _is_stand_in(module: object) -> bool:
    return type(module) is _StandIn


def _left(package: str) -> list[str]:
    """Public functions of the package that have no drop-in."""
    found = vars(sys.modules[package]) if package in sys.modules else {}
    return [name for name, value in found.items() if type(value) is FunctionType and name not in DROPINS[package]]


# --- places ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """A function and its replacement."""

    old: object
    new: object


def _replace(pairs: Mapping[int, _Pair]) -> list[str]:
    """Replaces functions, given by their `id`, in every place; returns the places."""
    search = _Search(pairs)
    found: list[str] = []
    for thing in (*sys.modules.values(), *gc.get_objects()):
        if (places := search.places(thing)) is not None:
            found += places
    return found


class _Search:
    """Replaces functions in the objects that it is given; each object is searched once."""

    def __init__(self, pairs: Mapping[int, _Pair]) -> None:
        self.pairs = pairs
        self.seen: set[int] = set()
        self.ways: dict[type, Callable[[Any], Iterator[str]] | None] = {}

    def places(self, thing: object) -> Iterator[str] | None:
        """The places in a module, a class, a function, a partial or an `nn.Module`; None for anything else."""
        kind = type(thing)  # not `isinstance`, which runs code of the objects that it is asked about
        if kind not in self.ways:
            self.ways[kind] = self._way(kind)
        way = self.ways[kind]
        return None if way is None else way(thing)

    def _way(self, kind: type) -> Callable[[Any], Iterator[str]] | None:
        if kind is FunctionType:
            return self._function
        if kind is functools.partial:
            return self._partial
        if issubclass(kind, ModuleType):
            return self._module
        if issubclass(kind, type):
            return self._class
        return self._attributes if issubclass(kind, nn.Module) else None

    def _new(self, value: object) -> Any:
        """The replacement of a value; None if the value stays."""
        pair = self.pairs.get(id(value))
        return None if pair is None else pair.new

    def _first_time(self, thing: object) -> bool:
        first = id(thing) not in self.seen
        self.seen.add(id(thing))
        return first

    def _module(self, module: ModuleType) -> Iterator[str]:
        name = vars(module).get("__name__", "?")
        if (name in DROPINS or _is_searched(name)) and self._first_time(vars(module)):
            yield from self._names(vars(module), str(name), vars(module).__setitem__)

    def _attributes(self, module: nn.Module) -> Iterator[str]:
        if self._first_time(vars(module)):
            kind = type(module)
            owner = f"<{kind.__module__}.{kind.__qualname__} object>"
            yield from self._names(vars(module), owner, vars(module).__setitem__)

    def _class(self, cls: Any) -> Iterator[str]:
        if self._first_time(cls) and _is_searched(cls.__module__):
            yield from self._names(vars(cls), f"{cls.__module__}.{cls.__qualname__}", functools.partial(setattr, cls))

    def _names(self, names: Mapping[str, Any], owner: str, put: Callable[[str, Any], None]) -> Iterator[str]:
        """The places among names, in what they name, and in dicts and lists that they name."""
        for name, value in list(names.items()):
            kind = type(value)
            bound = kind in (staticmethod, classmethod)
            if (new := self._new(value.__func__ if bound else value)) is not None:
                put(name, kind(new) if bound else new)
                yield f"{owner}.{name}"
            elif kind is dict or kind is list:
                yield from self._container(value, f"{owner}.{name}")
            elif not issubclass(kind, ModuleType):
                yield from self.places(value) or ()

    def _container(self, container: dict[Any, Any] | list[Any], owner: str) -> Iterator[str]:
        if not self._first_time(container):
            return
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if (new := self._new(value)) is not None:
                container[key] = new
                yield f"{owner}[{key!r}]"

    def _function(self, function: Any) -> Iterator[str]:
        """The places in default arguments and in variables of enclosing functions."""
        if not (function.__defaults__ or function.__kwdefaults__ or function.__closure__):
            return
        if not (self._first_time(function) and _is_searched(function.__module__)):
            return
        owner = f"{function.__module__}.{function.__qualname__}"
        defaults = function.__defaults__ or ()
        if any(self._new(value) is not None for value in defaults):
            function.__defaults__ = tuple(self._new(value) or value for value in defaults)
            yield f"{owner} (default)"
        for name, value in (function.__kwdefaults__ or {}).items():
            if (new := self._new(value)) is not None:
                function.__kwdefaults__[name] = new
                yield f"{owner} (default of {name})"
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if (new := self._new(_content(cell))) is not None:
                cell.cell_contents = new
                yield f"{owner} (variable {name})"

    def _partial(self, partial: Any) -> Iterator[str]:
        held = (partial.func, *partial.args, *partial.keywords.values())
        if self._first_time(partial) and any(self._new(value) is not None for value in held):
            func, *args = (self._new(value) or value for value in (partial.func, *partial.args))
            keywords = {name: self._new(value) or value for name, value in partial.keywords.items()}
            partial.__setstate__((func, tuple(args), keywords, vars(partial) or None))
            yield f"functools.partial of {getattr(func, '__name__', func)}"


def _is_searched(module: object) -> bool:
    """Whether a module is searched: not the private modules of the packages, whose functions call each other."""
    return not any(str(module) == package or str(module).startswith(f"{package}.") for package in DROPINS)


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
