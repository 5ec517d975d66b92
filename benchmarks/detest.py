"""The 25 problems of Hull, Enright, Fellen and Sedgwick (SIAM J. Numer. Anal. 9, 1972): NFE and achieved error."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import regnde
from benchmarks.peers import torchdiffeq_dopri5

__all__ = ["accuracy"]

Field = Callable[[Tensor, Tensor], Tensor]
END = 20.0
TOLERANCES = (1e-3, 1e-6, 1e-9)


def scalar(rule: Callable[[Tensor, Tensor], Tensor]) -> Field:
    """A problem of one unknown."""
    return rule


def system(rule: Callable[..., tuple[Tensor, ...]]) -> Field:
    """A problem whose slope is a tuple of expressions of t and the unknowns."""
    return lambda t, y: torch.stack(rule(t, *y))


def linear(matrix: np.ndarray) -> Field:
    """A linear problem."""
    a = torch.from_numpy(matrix)
    return lambda t, y: a @ y


def chain(diagonal: list[float], below: list[float]) -> Field:
    """A chain of radioactive decays: C1 and C2."""
    return linear(np.diag(diagonal) + np.diag(below, -1))


def heat(n: int) -> Field:
    """Second differences: C3 and C4."""
    return linear(np.diag([-2.0] * n) + np.diag([1.0] * (n - 1), 1) + np.diag([1.0] * (n - 1), -1))


PLANET_MASSES = (0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778)
SUN_MASS, GRAVITY = 1.00000597682, 2.95912208286
PLANET_POSITIONS = (
    (3.42947415189, 3.35386959711, 1.35494901715),
    (6.64145542550, 5.97156957878, 2.18231499728),
    (11.2630437207, 14.6952576794, 6.27960525067),
    (-30.1552268759, 1.65699966404, 1.43785752721),
    (-21.1238353380, 28.4465098142, 15.3882659679),
)
PLANET_VELOCITIES = (
    (-0.557160570446, 0.505696783289, 0.230578543901),
    (-0.415570776342, 0.365682722812, 0.169143213293),
    (-0.325325669158, 0.189706021964, 0.0877265322780),
    (-0.0240476254170, -0.287659532608, -0.117219543175),
    (-0.176860753121, -0.216393453025, -0.0148647893090),
)


def planets(t: Tensor, y: Tensor) -> Tensor:
    """C5: the five outer planets about the sun."""
    mass = torch.tensor(PLANET_MASSES, dtype=torch.float64)[:, None]
    x, v = y.reshape(2, 5, 3)
    pull = x / x.norm(dim=1, keepdim=True) ** 3
    gap = x[None] - x[:, None]
    distance = gap.norm(dim=2, keepdim=True) + torch.eye(5, dtype=torch.float64)[:, :, None]
    mutual = (mass[None] * gap / distance**3).sum(1)
    indirect = (mass * pull).sum(0, keepdim=True) - mass * pull
    return torch.stack([v, GRAVITY * (-(SUN_MASS + mass) * pull + mutual - indirect)]).reshape(-1)


def orbit(eccentricity: float) -> tuple[Field, list[float]]:
    """D1 to D5: two bodies."""

    def rule(t: Tensor, x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        cube = (x**2 + y**2) ** 1.5
        return u, v, -x / cube, -y / cube

    return system(rule), [1 - eccentricity, 0.0, 0.0, math.sqrt((1 + eccentricity) / (1 - eccentricity))]


def torus(t: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """B4: the integral surface of a torus."""
    r = torch.sqrt(a**2 + b**2)
    return -b - a * c / r, a - b * c / r, a / r


PROBLEMS: dict[str, tuple[Field, list[float]]] = {
    "A1": (scalar(lambda t, y: -y), [1.0]),
    "A2": (scalar(lambda t, y: -(y**3) / 2), [1.0]),
    "A3": (scalar(lambda t, y: y * torch.cos(t)), [1.0]),
    "A4": (scalar(lambda t, y: y / 4 * (1 - y / 20)), [1.0]),
    "A5": (scalar(lambda t, y: (y - t) / (y + t)), [4.0]),
    "B1": (system(lambda t, a, b: (2 * (a - a * b), -(b - a * b))), [1.0, 3.0]),
    "B2": (system(lambda t, a, b, c: (-a + b, a - 2 * b + c, b - c)), [2.0, 0.0, 1.0]),
    "B3": (system(lambda t, a, b, c: (-a, a - b**2, b**2)), [1.0, 0.0, 0.0]),
    "B4": (system(torus), [3.0, 0.0, 0.0]),
    "B5": (system(lambda t, a, b, c: (b * c, -a * c, -0.51 * a * b)), [0.0, 1.0, 1.0]),
    "C1": (chain([-1.0] * 9 + [0.0], [1.0] * 9), [1.0] + [0.0] * 9),
    "C2": (chain([-float(i) for i in range(1, 10)] + [0.0], [float(i) for i in range(1, 10)]), [1.0] + [0.0] * 9),
    "C3": (heat(10), [1.0] + [0.0] * 9),
    "C4": (heat(51), [1.0] + [0.0] * 50),
    "C5": (planets, np.ravel([PLANET_POSITIONS, PLANET_VELOCITIES]).tolist()),
    **{f"D{i + 1}": orbit(e) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))},
    "E1": (
        system(lambda t, a, b: (b, -(b / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * a))),
        [0.6713967071418030, 0.09540051444747446],
    ),
    "E2": (system(lambda t, a, b: (b, (1 - a**2) * b - a)), [2.0, 0.0]),
    "E3": (system(lambda t, a, b: (b, a**3 / 6 - a + 2 * torch.sin(2.78535 * t))), [0.0, 0.0]),
    "E4": (system(lambda t, a, b: (b, 0.032 - 0.4 * b**2)), [30.0, 0.0]),
    "E5": (system(lambda t, a, b: (b, torch.sqrt(1 + b**2) / (25 - t))), [0.0, 0.0]),
}


def reference(f: Field, y0: list[float]) -> np.ndarray:
    """The end state by scipy's DOP853 at 1e-13."""

    def rule(t: float, y: np.ndarray) -> np.ndarray:
        return f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

    return solve_ivp(rule, (0.0, END), y0, method="DOP853", rtol=1e-13, atol=1e-13).y[:, -1]


def accuracy() -> list[dict[str, object]]:
    """Median over the problems of NFE and of the achieved error over the tolerance, and the worst error."""
    solvers = ("tsit5", "dp5", "vern7", "torchdiffeq dopri5")
    found: dict[tuple[str, float], list[tuple[int, float]]] = {(s, tol): [] for s in solvers for tol in TOLERANCES}
    for f, start in PROBLEMS.values():
        exact = reference(f, start)
        y0 = torch.tensor(start, dtype=torch.float64)
        for solver, tolerance in found:
            calls = 0

            def counting(t: Tensor, y: Tensor, f: Field = f) -> Tensor:
                nonlocal calls
                calls += 1
                return f(t, y)

            with torch.no_grad():
                if solver.startswith("torchdiffeq"):
                    end = torchdiffeq_dopri5(counting, y0, torch.tensor([0.0, END], dtype=torch.float64), tolerance)[-1]
                else:
                    chosen = regnde.Solver(method=solver, rtol=tolerance, atol=tolerance, engine="torch")
                    end = regnde.solve(counting, y0, [0.0, END], chosen).y1
            error = np.abs(end.numpy() - exact) / (tolerance + tolerance * np.abs(exact))
            found[solver, tolerance].append((calls, float(np.sqrt(np.mean(error**2)))))
    return [
        {
            "method": solver,
            "tolerance": f"{tolerance:.0e}",
            "NFE, all 25": sum(n for n, _ in results),
            "error / tolerance, median": round(float(np.median([e for _, e in results])), 2),
            "worst": round(max(e for _, e in results), 1),
        }
        for (solver, tolerance), results in found.items()
    ]
