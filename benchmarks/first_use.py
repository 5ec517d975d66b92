"""What the Julia engine's first solves in a process take after `import torch`: seconds, and seconds of processor time.

Run: PYTHONPATH=python python -m benchmarks.first_use [--stiff] [--adjoints]
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
    parser.add_argument("--stiff", action="store_true", help="also Rosenbrock methods")
    parser.add_argument("--adjoints", action="store_true", help="also SciMLSensitivity's adjoints")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| first use | seconds | of processor time |\n|---|--:|--:|")
    began = last = time.perf_counter(), time.process_time()

    def row(name: str) -> None:
        nonlocal last
        now = time.perf_counter(), time.process_time()
        print(f"| {name} | {now[0] - last[0]:.2f} | {now[1] - last[1]:.2f} |", flush=True)
        last = now

    import regnde  # noqa: F401  # to time it

    row("import regnde")
    from regnde._engines.julia import runtime

    runtime.start()
    row("start of Julia and its packages")
    gradient(Autonomous((2, 50, 2), nn.Tanh), 2)
    row("gradient, tsit5, 2-50-2, tanh")
    print(f"| **first gradient, all of these** | {last[0] - began[0]:.2f} | {last[1] - began[1]:.2f} |")
    gradient(Autonomous((4, 32, 32, 4), nn.Tanh), 4)
    row("another architecture: 4-32-32-4, tanh")
    gradient(Autonomous((4, 32, 32, 4), nn.SiLU), 4)
    row("another operator: SiLU")
    gradient(Autonomous((4, 32, 32, 4), nn.SiLU), 4, torch.float64)
    row("float64")
    for method in ("dp5", "bs3", "vern9"):
        gradient(Autonomous((2, 50, 2), nn.Tanh), 2, method=method)
        row(f"another method: {method}")
    if options.stiff:
        for method in ("rosenbrock23", "rodas5p"):
            gradient(Autonomous((2, 50, 2), nn.Tanh), 2, torch.float64, method=method)
            row(f"a Rosenbrock method: {method}, float64")
    if not options.adjoints:
        return
    for name in ("interpolating", "gauss", "quadrature", "backsolve", "tracker"):
        gradient(Autonomous((2, 50, 2), nn.Tanh), 2, gradient=name)
        row(f"gradient={name!r}")
    gradient(Autonomous((4, 32, 32, 4), nn.Tanh), 4, gradient="interpolating")
    row("another architecture, interpolating")


if __name__ == "__main__":
    main()
