"""Time per step of both engines, of torchdiffeq's dopri5 and of compiled diffrax, on the same problems in one run.

Forward, and forward with the gradient of all parameters; ours with the records of every step and a penalty on them.
The methods take different numbers of steps at one tolerance, hence the time per accepted step. With a step size for
each sample it is that of one sample. A second table tells apart what a solve takes whatever its steps, by solves of a
quarter of the span. Medians of processor time, in alternating order.

Run: PYTHONPATH=python python -m benchmarks.engines
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import regnde
from benchmarks.engine_fields import PROBLEMS, Network, Problem
from benchmarks.timing import race
from regnde._engines import engines

Run = Callable[[bool], int]
"""Solves, with the gradient if asked for; the number of accepted steps."""


class Counted(nn.Module):
    """A field that counts its calls."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        self.calls += 1
        return self.field(t, y)


def ours(problem: Problem, engine: str) -> Run:
    """Solves with records."""
    field, y0 = problem.start()
    solver = regnde.Solver(
        rtol=problem.tolerance,
        atol=problem.tolerance,
        engine=engine,  # type: ignore[arg-type]  # a known name
        batch=problem.batch,
    )

    def run(backward: bool) -> int:
        with torch.set_grad_enabled(backward):
            sol = regnde.solve(field, y0, [0.0, problem.end], solver, record="all")
            if backward:
                torch.autograd.backward(sol.y1.square().mean() + 1e-3 * regnde.ErrorPenalty()(sol))
        return sol.stats.accepted

    return run


def torchdiffeq_dopri5(problem: Problem) -> Run:
    """Solves with torchdiffeq. It reports no steps: they follow from the calls, two at first, then six a step."""
    from torchdiffeq import odeint

    field, y0 = problem.start()
    ts = torch.tensor([0.0, problem.end], dtype=y0.dtype)

    def run(backward: bool) -> int:
        counted = Counted(field)
        with torch.set_grad_enabled(backward):
            ys = odeint(counted, y0, ts, rtol=problem.tolerance, atol=problem.tolerance, method="dopri5")
            if backward:
                torch.autograd.backward(ys[-1].square().mean())
        return (counted.calls - 2) // 6

    return run


def diffrax_dopri5(problem: Problem) -> Run | None:
    """Solves with compiled diffrax, if it is installed and the field is written for it."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    field, y0 = problem.start()
    if not isinstance(field, Network):
        return None
    jax.config.update("jax_enable_x64", True)
    weights, start = [jnp.asarray(p.detach().numpy()) for p in field.parameters()], jnp.asarray(y0.numpy())

    def slope(t: float, y: jnp.ndarray, w: list[jnp.ndarray]) -> jnp.ndarray:
        return 2 * (jnp.tanh(y @ w[0].T + w[1]) @ w[2].T + w[3]) - 0.1 * y

    def solve(w: list[jnp.ndarray]) -> tuple[jnp.ndarray, jnp.ndarray]:
        control = diffrax.PIDController(rtol=problem.tolerance, atol=problem.tolerance)
        sol = diffrax.diffeqsolve(
            diffrax.ODETerm(slope), diffrax.Dopri5(), 0.0, problem.end, None, start, w, stepsize_controller=control
        )
        return (sol.ys[-1] ** 2).mean(), sol.stats["num_accepted_steps"]

    forward, gradient = jax.jit(solve), jax.jit(jax.value_and_grad(solve, has_aux=True))

    def run(backward: bool) -> int:
        if backward:
            return int(jax.block_until_ready(gradient(weights))[0][1])
        return int(jax.block_until_ready(forward(weights))[1])

    return run


class Times(NamedTuple):
    """Microseconds of a solver.

    Attributes:
        forward: per accepted step.
        gradient: likewise, with the gradient.
        further: of each step more, with the gradient.
        fixed: of a solve with the gradient but for that: of no step.
    """

    forward: float
    gradient: float
    further: float
    fixed: float


def runs_of(problem: Problem, names: list[str]) -> dict[str, Run]:
    """The solvers that can solve the problem."""
    runs: dict[str, Run | None] = {name: ours(problem, name) for name in names}
    if problem.batch == "joint":
        runs |= {"torchdiffeq": torchdiffeq_dopri5(problem), "diffrax": diffrax_dopri5(problem)}
    return {name: run for name, run in runs.items() if run is not None}


def times(problem: Problem, names: list[str], repeats: int) -> dict[str, Times]:
    """Times of each solver."""
    runs = runs_of(problem, names)
    short = {
        f"{name}, short": run for name, run in runs_of(dataclasses.replace(problem, end=problem.end / 4), names).items()
    }
    steps = {name: run(False) for name, run in (runs | short).items()}
    forward = race({name: partial(run, False) for name, run in runs.items()}, repeats)
    gradient = race({name: partial(run, True) for name, run in (runs | short).items()}, repeats)

    def found(name: str) -> Times:
        long, brief = gradient[name], gradient[f"{name}, short"]
        further = (long - brief) / (steps[name] - steps[f"{name}, short"])
        each = forward[name] / steps[name], long / steps[name], further, long - further * steps[name]
        return Times(*(1e6 * seconds for seconds in each))

    return {name: found(name) for name in runs}


def main() -> None:
    """Prints two tables, one row a problem."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, help="solves for each number (default 15)")
    parser.add_argument("--only", default="", help="problems whose name holds this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = []
    for name, engine in engines().items():
        if (why := engine.unavailable()) is None:
            names.append(name)
        else:
            print(f"{name} engine left out: {why}")
    columns = ["torchdiffeq", "diffrax", *names]
    print("Microseconds per accepted step, one thread: forward / with gradient.\n")
    ratios = [f"{name} / julia" for name in ("torchdiffeq", "diffrax", "torch")] if "julia" in names else []
    print(_row("field, batch", *columns, *(f"{ratio}, gradient" for ratio in ratios)))
    print("|---" * (1 + len(columns) + len(ratios)) + "|")
    apart = []
    for problem in PROBLEMS:
        if options.only not in problem.name:
            continue
        found = times(problem, names, options.repeats)
        cells = [
            f"{found[name].forward:,.1f} / {found[name].gradient:,.1f}" if name in found else "" for name in columns
        ]
        print(_row(problem.name, *cells, *(_ratio(found, ratio, "gradient") for ratio in ratios)), flush=True)
        cells = [f"{found[name].further:,.1f} / {found[name].fixed:,.0f}" if name in found else "" for name in columns]
        apart.append(_row(problem.name, *cells, *(_ratio(found, ratio, "further") for ratio in ratios)))
    print("\nMicroseconds with the gradient: of each further step / of a solve but for its steps.\n")
    print(_row("field, batch", *columns, *(f"{ratio}, further step" for ratio in ratios)))
    print("|---" * (1 + len(columns) + len(ratios)) + "|")
    print("\n".join(apart))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(found: dict[str, Times], ratio: str, time: str) -> str:
    a, b = ratio.split(" / ")
    return f"{getattr(found[a], time) / getattr(found[b], time):.2f}" if a in found else ""


if __name__ == "__main__":
    main()
