"""Reports what works on this machine (engines, versions, devices), and why something does not and what to do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
import warnings
from collections.abc import Sequence

import torch

from regnde import __version__
from regnde._engines import engines
from regnde._engines.julia import availability, installation
from regnde._engines.julia.methods import EXPLICIT, FIXED, IMPLICIT, STOCHASTIC
from regnde._engines.julia.packages import GROUPS, Group
from regnde._engines.julia.runtime import missing
from regnde._errors import EngineUnavailable
from regnde._rosenbrock_tableau import AUTOTSIT5, ROSENBROCK_TABLEAUX
from regnde._sde_method import SDE_METHODS
from regnde._solve import solve
from regnde._solver import Solver
from regnde._tableau import TABLEAUX

__all__ = ["install_julia", "methods_table", "report"]

PACKAGES = ("numpy", "torch", "juliacall", "juliapkg", "matplotlib", "mlxtend", "tqdm")


def report() -> tuple[list[str], bool]:
    """The findings, a line each, and whether some engine solved a problem."""
    lines = [f"regnde {__version__}, Python {platform.python_version()}, {platform.platform()}", "", "packages"]
    lines += [f"  {name:<11}{_version(name)}" for name in PACKAGES]
    lines += ["", "devices", f"  cpu        {torch.get_num_threads()} thread(s)"]
    lines += [f"  {device:<11}{state}" for device, state in _accelerators()]
    lines += ["", "engines"]
    solved = False
    for name, engine in engines().items():
        why = engine.unavailable()
        if why is None:
            works, finding = _try(name)
            solved = solved or works
        else:
            finding = f"not available: {why}"
        lines.append(f"  {name:<11}{finding}")
    if engines()["julia"].unavailable() is None:
        lines += ["", "Julia packages"]
        for group in GROUPS:
            names = missing(*group.names)
            finding = f"not installed ({group.takes}): {availability.command(group, names)}" if names else "installed"
            lines.append(f"  {group.option:<11}{group.content}: {finding}")
    depot = os.environ.get("JULIA_DEPOT_PATH", "")
    if depot and os.pathsep not in depot:
        lines.append(
            f"  JULIA_DEPOT_PATH={depot} is the only depot: Julia does not see the code that it is shipped with "
            f"compiled, and compiles it again. Write JULIA_DEPOT_PATH={depot}{os.pathsep}"
        )
    return lines, solved


def install_julia(groups: Sequence[Group] = ()) -> list[str]:
    """Installs and starts the Julia engine, and times its first and second solve.

    Args:
        groups: what to install beside what explicit methods and their discrete gradient need.

    Raises:
        EngineUnavailable: with the reason and the next step, if that does not work.
    """
    seconds = installation.install(groups)
    lines = [f"Julia is ready: installed, precompiled and started in {seconds:.1f} s"]
    for turn in ("first", "second"):
        works, finding = _try("julia")
        if not works:
            raise EngineUnavailable(f"Julia starts, but the {turn} solve {finding}")
        lines.append(f"{turn} solve {finding}")
    return lines


def methods_table() -> str:
    """What each engine steps with, as the Markdown table of docs/engines.md."""
    odes, sdes = {**TABLEAUX}, {**SDE_METHODS}
    rows: list[tuple[str, str, str, str, bool, bool]] = []  # name, kind, order, records, whether torch, Julia has it
    for ode in odes.values():
        kind = "ODE, adaptive" if ode.adaptive else "ODE, fixed step"
        rows.append(
            (ode.name, kind, f"{ode.order}", _records(ode.adaptive, ode.stiffness_pair), True, _julia(ode.name))
        )
    for sde in sdes.values():
        kind = "SDE, adaptive" if sde.adaptive else "SDE, fixed step"
        records = _records(sde.adaptive, sde.stiffness_pair)
        rows.append((sde.name, kind, f"{sde.order:g}", records, True, sde.name in STOCHASTIC))
    rows += [
        (name, "ODE, adaptive", name[-1], _records(True, True), False, True) for name in EXPLICIT if name not in odes
    ]
    stiff = {name: f"{method.order}" for name, method in ROSENBROCK_TABLEAUX.items()} | {AUTOTSIT5: "5 and 2"}
    rows += [(name, "ODE, stiff", order, _records(True, True), True, name in IMPLICIT) for name, order in stiff.items()]
    rows += [(name, "ODE, stiff", "", "error read back", False, True) for name in IMPLICIT if name not in stiff]
    lines = ["| method | kind | order | records | torch | julia |", "|---|---|---|---|---|---|"]
    for name, kind, order, records, *there in rows:
        marks = " | ".join("yes" if has else "" for has in there)
        lines.append(f"| `{name}` | {kind} | {order} | {records} | {marks} |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def _julia(ode: str) -> bool:
    return ode in EXPLICIT or ode in FIXED or ode in IMPLICIT


def _records(error: bool, stiffness: bool) -> str:
    return " and ".join(name for name, there in (("error", error), ("stiffness", stiffness)) if there)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _accelerators() -> list[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old driver warns here; the report says the same
        cuda = torch.cuda.is_available()
    names = [("cuda", torch.cuda.get_device_name()) if cuda else ("cuda", "none that torch can use")]
    if torch.backends.mps.is_available():
        names.append(("mps", "float32 only"))
    return names


def _try(name: str) -> tuple[bool, str]:
    """Solves y' = -y with the engine and says how it went."""
    try:
        began = time.perf_counter()
        solver = Solver(engine=name)  # type: ignore[arg-type]  # a known name
        solution = solve(_decay, [1.0], [0.0, 1.0], solver, record="all")
        seconds = time.perf_counter() - began
    except Exception as problem:  # any error of an engine belongs in the report
        return False, f"fails: {type(problem).__name__}: {problem}"
    stats = solution.stats
    return True, f"works: {stats.accepted} steps, NFE {stats.nfe}, y(1) = {float(solution.y1):.5f}, {seconds:.3f} s"


def _decay(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -y
