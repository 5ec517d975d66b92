"""Time per step of both engines and of torchdiffeq's dopri5, on the same problems in one run.

Forward, and forward with the gradient of all parameters; ours with the records of every step and a
penalty on them. The methods take different numbers of steps at one tolerance, hence the time per step.

Run: PYTHONPATH=python python benchmarks/engines.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import regnde
from regnde._engines import engines

# name, batch, width of the state, hidden width, dtype, tolerance, end of the span, least speed-up of the
# gradient per step that the Julia engine is held to (issue 3)
PROBLEMS = (
    ("2-50-2", 1, 2, 50, torch.float64, 1e-6, 60.0, 50.0),
    ("2-50-2", 20, 2, 50, torch.float64, 1e-6, 60.0, 12.0),
    ("4-32-4", 64, 4, 32, torch.float64, 1e-6, 20.0, 6.0),
    ("64-128-64", 128, 64, 128, torch.float64, 1e-6, 10.0, 2.0),
    ("196-64-196", 200, 196, 64, torch.float32, 1e-4, 4.0, 1.0),
    ("784-100-784", 512, 784, 100, torch.float32, 1e-4, 2.0, 1.0),
)


class Field(nn.Module):
    """A network of one hidden layer, turned so that trajectories stay bounded and keep moving."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        return 2 * self.net(y) - 0.1 * y


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


def ours(field: nn.Module, y0: Tensor, end: float, tolerance: float, engine: str, backward: bool) -> int:
    """One solve with records; the number of its accepted steps."""
    solver = regnde.Solver(rtol=tolerance, atol=tolerance, engine=engine)  # type: ignore[arg-type]  # a known name
    with torch.set_grad_enabled(backward):
        sol = regnde.solve(field, y0, [0.0, end], solver, record="all")
        if backward:
            torch.autograd.backward(sol.y1.square().mean() + 1e-3 * regnde.ErrorPenalty()(sol))
    return sol.stats.accepted


def torchdiffeq_dopri5(field: nn.Module, y0: Tensor, end: float, tolerance: float, backward: bool) -> int:
    """One solve with torchdiffeq; its accepted steps (it reports none: two calls first, then six a step)."""
    from torchdiffeq import odeint

    counted = Counted(field)
    ts = torch.tensor([0.0, end], dtype=y0.dtype)
    with torch.set_grad_enabled(backward):
        ys = odeint(counted, y0, ts, rtol=tolerance, atol=tolerance, method="dopri5")
        if backward:
            torch.autograd.backward(ys[-1].square().mean())
    return (counted.calls - 2) // 6


def fastest(run: Callable[[], int], seconds: float) -> float:
    """Least time per step, in microseconds, of repeated runs over about `seconds`."""
    run()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        steps = run()
        best = min(best, (time.perf_counter() - start) / steps)
    return best * 1e6


def main() -> None:
    """Prints one line a problem."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each number (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="torch's and BLAS's threads (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [name for name, engine in engines().items() if engine.unavailable() is None]
    for name, engine in engines().items():
        if (why := engine.unavailable()) is not None:
            print(f"{name} engine left out: {why}")
    print(f"microseconds per accepted step, {options.threads} thread(s); x: torchdiffeq's time over ours\n")
    print(f"{'problem':<26}{'torchdiffeq':>20}" + "".join(f"{name:>32}" for name in names))
    print(f"{'':<26}{'forward':>10}{'+grad':>10}" + f"{'forward':>10}{'x':>6}{'+grad':>10}{'x':>6}" * len(names))
    for label, batch, width, hidden, dtype, tolerance, end, wanted in PROBLEMS:
        torch.manual_seed(0)
        field, y0 = Field(width, hidden).to(dtype), torch.randn(batch, width, dtype=dtype)

        def timed(run: Callable[..., int], *arguments: object) -> tuple[float, float]:
            return tuple(  # type: ignore[return-value]  # of two
                fastest(lambda back=back: run(field, y0, end, tolerance, *arguments, back), options.seconds)  # noqa: B023
                for back in (False, True)
            )

        peer = timed(torchdiffeq_dopri5)
        line = f"{label + f' B={batch} ' + str(dtype)[6:]:<26}{peer[0]:>10.1f}{peer[1]:>10.1f}"
        for name in names:
            own = timed(ours, name)
            line += "".join(f"{mine:>10.1f}{theirs / mine:>6.1f}" for mine, theirs in zip(own, peer, strict=True))
        print(line + f"   (julia +grad is held to {wanted:g}x)")


if __name__ == "__main__":
    main()
