"""What the Julia engine's first solves in a process take, in seconds of processor time after `import torch`.

Run: PYTHONPATH=python python -m benchmarks.first_use [--adjoints]
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch
from torch import Tensor, nn

__all__ = ["main"]


class Autonomous(nn.Module):
    """A network of the state alone."""

    def __init__(self, sizes: tuple[int, ...], activation: type[nn.Module]) -> None:
        super().__init__()
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        return self.net(y)


def gradient(field: nn.Module, width: int, dtype: torch.dtype = torch.float32, **options: str) -> None:
    """Solves and differentiates; with the records and a penalty, if the gradient is the discrete one."""
    import regnde

    solver = regnde.Solver(rtol=1e-4, atol=1e-4, engine="julia", **options)  # type: ignore[arg-type]  # known names
    y0, discrete = torch.ones(20, width, dtype=dtype), "gradient" not in options
    sol = regnde.solve(field.to(dtype), y0, [0.0, 1.0], solver, record="all" if discrete else "none")
    loss = sol.y1.square().mean()
    torch.autograd.backward(loss + 1e-3 * regnde.ErrorPenalty()(sol) if discrete else loss)


def main() -> None:
    """Prints a table, one row for each first use, in the order in which they are made."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--adjoints", action="store_true", help="also SciMLSensitivity's adjoints")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| first use | seconds |\n|---|--:|")
    began = last = time.process_time()

    def row(name: str) -> None:
        nonlocal last
        now = time.process_time()
        print(f"| {name} | {now - last:.2f} |", flush=True)
        last = now

    import regnde  # noqa: F401

    row("import regnde")
    from regnde._engines.julia import runtime

    runtime.start()
    row("start of Julia and its packages")
    gradient(Autonomous((2, 50, 2), nn.Tanh), 2)
    row("gradient, tsit5, 2-50-2, tanh")
    print(f"| **first gradient, all of these** | {last - began:.2f} |")
    gradient(Autonomous((4, 32, 32, 4), nn.Tanh), 4)
    row("another architecture: 4-32-32-4, tanh")
    gradient(Autonomous((4, 32, 32, 4), nn.SiLU), 4)
    row("another operator: SiLU")
    gradient(Autonomous((4, 32, 32, 4), nn.SiLU), 4, torch.float64)
    row("float64")
    gradient(Autonomous((2, 50, 2), nn.Tanh), 2, method="vern9")
    row("a method that is not precompiled: vern9")
    gradient(Autonomous((2, 50, 2), nn.Tanh), 2, torch.float64, method="rosenbrock23")
    row("a Rosenbrock method: rosenbrock23, float64")
    gradient(Autonomous((2, 50, 2), nn.Tanh), 2, torch.float64, method="rodas5p")
    row("another one: rodas5p, float64")
    if not options.adjoints:
        return
    for name in ("interpolating", "gauss", "quadrature", "backsolve", "tracker"):
        gradient(Autonomous((2, 50, 2), nn.Tanh), 2, gradient=name)
        row(f"gradient={name!r}")
    gradient(Autonomous((4, 32, 32, 4), nn.Tanh), 4, gradient="interpolating")
    row("another architecture, interpolating")


if __name__ == "__main__":
    main()
