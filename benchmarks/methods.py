"""euler, rk4 and dopri5 against torchdiffeq on a wide and on a convolutional field, on the CPU and on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torchdiffeq
from torch import Tensor, nn

import regnde
from benchmarks.fields import FIELDS, Autonomous
from benchmarks.ode import Row, gradient_of
from benchmarks.timing import race

__all__ = ["methods"]

Solve = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
STEPS, END, TOLERANCE, REPEATS = 10, 2.0, 1e-4, 5
METHODS = {"euler": "euler", "rk4": "rk38", "dopri5": "dp5"}  # torchdiffeq's rk4 is the 3/8 rule


def wide() -> tuple[nn.Module, Tensor]:
    """784-100-784 with a batch of 512."""
    f, y0, _ = FIELDS[-1].make()
    return f, y0


def convolutional() -> tuple[nn.Module, Tensor]:
    """Two convolutions of 8 channels on 32 images of 16 x 16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1))
    return Autonomous(net), torch.randn(32, 8, 16, 16)


SETUPS = {"784-100-784, B=512": wide, "conv 8 x 16 x 16, B=32": convolutional}


def solvers(method: str) -> dict[str, Solve]:
    """`regnde.solve`, `regnde.odeint` and torchdiffeq with one method; fixed steps have the same size in all."""
    fixed = method != "dopri5"
    options = {"step_size": END / STEPS} if fixed else None
    own = METHODS[method]

    def solve(f: nn.Module, y0: Tensor, ts: Tensor, tolerance: float) -> Tensor:
        solver = regnde.Solver(
            method=own, rtol=tolerance, atol=tolerance, dt0=END / STEPS if fixed else None, engine="torch"
        )
        return regnde.solve(f, y0, ts, solver).ys

    def called(odeint: Callable[..., Tensor]) -> Solve:
        return lambda f, y0, ts, tolerance: odeint(
            f, y0, ts, rtol=tolerance, atol=tolerance, method=method, options=options
        )

    return {"solve": solve, "odeint": called(regnde.odeint), "torchdiffeq": called(torchdiffeq.odeint)}


def steps_of(solve: Solve, f: nn.Module, y0: Tensor, ts: Tensor) -> int:
    """Trial steps of dopri5, counted in the field (2 or 3 evaluations to start, 6 a step)."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    with f.register_forward_pre_hook(count), torch.no_grad():
        solve(f, y0, ts, TOLERANCE)
    return round((calls - 2) / 6)


def on(device: str) -> list[Row]:
    """Milliseconds a step on one device, and torchdiffeq's over ours."""
    rows: list[Row] = []
    for name, make in SETUPS.items():
        f, y0 = (x.to(device) for x in make())
        ts = torch.tensor([0.0, END], device=device)
        for method in METHODS:
            rivals = solvers(method)
            steps = {
                rival: steps_of(solve, f, y0, ts) if method == "dopri5" else STEPS for rival, solve in rivals.items()
            }
            with torch.no_grad():
                forward = race(
                    {rival: functools.partial(solve, f, y0, ts, TOLERANCE) for rival, solve in rivals.items()},
                    REPEATS,
                    device,
                )
            training = race(
                {rival: gradient_of(solve, f, y0, ts, TOLERANCE) for rival, solve in rivals.items()}, REPEATS, device
            )
            for kind, seconds in (("forward", forward), ("training", training)):
                each = {rival: 1e3 * seconds[rival] / steps[rival] for rival in rivals}
                rows.append(
                    {
                        "device": device,
                        "field": name,
                        "method": method,
                        "pass": kind,
                        **{f"{rival} ms/step": round(time, 3) for rival, time in each.items()},
                        **{f"x {rival}": round(each["torchdiffeq"] / each[rival], 2) for rival in ("solve", "odeint")},
                    }
                )
    return rows


def methods() -> list[Row]:
    """On the CPU, and on a GPU where there is one."""
    if torch.cuda.is_available():
        return on("cpu") + on("cuda")
    return [*on("cpu"), {"device": "cuda: left out, torch finds no CUDA device"}]
