"""The drop-ins for torchsde: against that package on its own noise, divergences, gradients, refusals."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from torch import nn

import regnde
from frozen import central_differences, relative
from regnde import BrownianPath, sdeint, sdeint_adjoint
from tolerances import EXACT, GRADIENT, ROUNDING, SOLVER

TS = torch.linspace(0, 1, 5, dtype=torch.float64)
NOISES = ("diagonal", "scalar", "additive", "general")
CHANNELS, BATCH = 3, 4


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class System(nn.Module):
    """A system of each kind of noise with a parameter in both functions; entries of g depend on their own of y."""

    def __init__(self, noise_type: str = "diagonal", sde_type: str = "ito") -> None:
        super().__init__()
        self.noise_type, self.sde_type = noise_type, sde_type
        self.w = nn.Parameter(f64(-0.5))

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.sin(y) + self.w * y.flip(1)

    def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        entries = 0.3 * torch.cos(self.w * y)
        if self.noise_type == "diagonal":
            return entries
        if self.noise_type == "scalar":
            return entries.unsqueeze(-1)
        if self.noise_type == "additive":
            return (0.2 + 0.1 * torch.cos(t + self.w) * torch.eye(CHANNELS, 2, dtype=y.dtype)).expand(
                len(y), CHANNELS, 2
            )
        return torch.stack([entries, 0.2 * torch.sin(y.flip(1)) + t], -1)

    def h(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -0.2 * y


def columns(noise_type: str) -> int:
    return {"diagonal": CHANNELS, "scalar": 1}.get(noise_type, 2)


def start() -> torch.Tensor:
    return torch.linspace(0.2, 1.0, BATCH * CHANNELS, dtype=torch.float64).view(BATCH, CHANNELS)


def motion(noise_type: str, extra: int = 0, area: str = "space-time"):
    torchsde = pytest.importorskip("torchsde", reason="torchsde is not installed (pip install regnde[test])")
    size = (BATCH, columns(noise_type) + extra)
    return torchsde.BrownianInterval(0.0, 1.0, size, dtype=torch.float64, entropy=7, levy_area_approximation=area)


def cases() -> list[tuple[str, str, str, dict]]:
    found = []
    for method, calculus, noise in itertools.product(
        ("euler", "milstein", "euler_heun", "heun", "midpoint", "reversible_heun"), ("ito", "stratonovich"), NOISES
    ):
        ito = method in ("euler", "milstein")
        if (calculus == "ito") != ito and method != "milstein":
            continue
        if method == "milstein" and noise == "general":
            continue
        found.append((method, calculus, noise, {}))
        if method == "milstein" and noise != "additive":
            found.append((method, calculus, noise, {"grad_free": True}))
    return found


@pytest.mark.parametrize(("method", "calculus", "noise", "options"), cases())
@pytest.mark.parametrize("dt", [0.05, 0.3])
def test_every_method_is_torchsdes_on_its_own_noise(
    method: str, calculus: str, noise: str, options: dict, dt: float
) -> None:
    """States and gradients to rounding, also where no step ends at the times."""
    theirs = pytest.importorskip("torchsde", reason="torchsde is not installed (pip install regnde[test])")
    outcomes = []
    for solve in (theirs.sdeint, sdeint, sdeint_adjoint):
        sde, y0 = System(noise, calculus), start().requires_grad_()
        ys = solve(sde, y0, TS, bm=motion(noise), method=method, dt=dt, options=options)
        outcomes.append((ys.detach(), *torch.autograd.grad(ys.square().sum(), [sde.w, y0])))
    for ours in outcomes[1:]:
        for a, b in zip(ours, outcomes[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e3 * ROUNDING, atol=1e3 * ROUNDING)


@pytest.mark.parametrize("noise", ["diagonal", "scalar", "additive"])
def test_order_one_and_a_half_converges_to_the_same_path(noise: str) -> None:
    """`srk`: other tableaux than torchsde's, so compare with its finer steps; with error control too."""
    theirs = pytest.importorskip("torchsde", reason="torchsde is not installed (pip install regnde[test])")
    sde, bm = System(noise), motion(noise)
    with torch.no_grad():
        fine = theirs.sdeint(sde, start(), TS, bm=bm, method="srk", dt=0.02)
        distances = [
            (sdeint(sde, start(), TS, bm=bm, dt=dt) - fine)[[0, 2, 4]].abs().max().item() for dt in (0.25, 0.05)
        ]
        adaptive = sdeint(sde, start(), TS, bm=bm, adaptive=True, dt=0.01, rtol=1e-4, atol=1e-4)
    assert distances[1] < 2e-3
    assert distances[1] < distances[0] / 3  # order 1.5 gives 11, on one path more or less
    torch.testing.assert_close(adaptive[-1], fine[-1], rtol=0, atol=SOLVER * 1e-4)


@pytest.mark.parametrize(
    ("method", "calculus"),
    [
        ("euler", "ito"),
        ("milstein", "ito"),
        ("milstein", "stratonovich"),
        ("heun", "stratonovich"),
        (None, "stratonovich"),
    ],
)
@pytest.mark.parametrize("noise", NOISES)
def test_adaptive_steps(method: str | None, calculus: str, noise: str) -> None:
    """The error is controlled by a method of the same calculus: near the same solution, along the same path."""
    if method == "milstein" and noise == "general":
        return
    sde, path = System(noise, calculus), BrownianPath(0.0, 1.0, (BATCH, columns(noise)), seed=2)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ys = sdeint(sde, start(), TS, path, method, adaptive=True, dt=0.01, rtol=1e-3, atol=1e-3)
        fine = sdeint(sde, start(), TS, path, "euler" if calculus == "ito" else "heun", dt=1e-3)
    torch.testing.assert_close(ys[-1], fine[-1], rtol=0, atol=0.1)


def test_euler_with_adaptive_steps_warns_as_torchsde_does() -> None:
    with pytest.warns(UserWarning, match="converges slowly"):
        sdeint(System(), start(), [0.0, 0.1], method="euler", adaptive=True, dt=0.01, rtol=0.1, atol=0.1)


def test_steps_at_dt_min_are_taken_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="below dt_min=0.05"):
        sdeint(System(), start(), [0.0, 0.5], adaptive=True, dt=0.1, dt_min=0.05, rtol=1e-9, atol=1e-9)


# --- what torchsde's objects may have -------------------------------------------------------------


class FAndG:
    def __init__(self, of: System) -> None:
        self.of, self.noise_type, self.sde_type, self.calls = of, of.noise_type, of.sde_type, 0

    def f_and_g(self, t, y):
        self.calls += 1
        return self.of.f(t, y), self.of.g(t, y)


class GProd(FAndG):
    f_and_g = None

    def f(self, t, y):
        return self.of.f(t, y)

    def g_prod(self, t, y, v):
        g = self.of.g(t, y)
        return g * v if self.noise_type == "diagonal" else torch.einsum("bdm,bm->bd", g, v)


class FAndGProd(GProd):
    f = g_prod = None

    def f_and_g_prod(self, t, y, v):
        return self.of.f(t, y), GProd.g_prod(self, t, y, v)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("form", [FAndG, GProd, FAndGProd])
@pytest.mark.parametrize("method", ["midpoint", "reversible_heun", "euler_heun"])
def test_functions_in_other_forms_are_the_same(form, noise: str, method: str) -> None:
    path = BrownianPath(0.0, 1.0, (BATCH, columns(noise)), seed=2)
    plain = System(noise, "stratonovich")
    wanted = sdeint(plain, start(), TS, path, method, dt=0.1)
    got = sdeint(form(plain), start(), TS, path, method, dt=0.1)
    torch.testing.assert_close(got, wanted, rtol=ROUNDING, atol=ROUNDING)


def test_a_function_of_both_is_called_once_where_both_are_asked() -> None:
    sde = FAndG(System("general", "stratonovich"))
    sdeint(sde, start(), [0.0, 1.0], method="midpoint", dt=0.125, bm=BrownianPath(0.0, 1.0, (BATCH, 2), seed=1))
    assert sde.calls == 16


def test_names() -> None:
    class Renamed:
        sde_type, noise_type = "ito", "diagonal"
        drift, diffusion, prior = (getattr(System(), name) for name in ("f", "g", "h"))

    path = BrownianPath(0.0, 1.0, (BATCH, CHANNELS + 1), seed=2)
    names = {"drift": "drift", "diffusion": "diffusion", "prior_drift": "prior"}
    got = sdeint(Renamed(), start(), TS, path, dt=0.1, names=names, logqp=True)
    wanted = sdeint(System(), start(), TS, path, dt=0.1, logqp=True)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


# --- divergence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("calculus", ["ito", "stratonovich"])
def test_logqp_is_torchsdes(noise: str, calculus: str) -> None:
    theirs = pytest.importorskip("torchsde", reason="torchsde is not installed (pip install regnde[test])")
    method = "euler" if calculus == "ito" else "midpoint"
    outcomes = []
    for solve in (theirs.sdeint, sdeint, sdeint_adjoint):
        sde = System(noise, calculus)
        bm = motion(noise, extra=noise == "diagonal")
        ys, ratio = solve(sde, start(), TS, bm=bm, method=method, dt=0.05, logqp=True)
        outcomes.append((ys.detach(), ratio.detach(), *torch.autograd.grad(ys.sum() + ratio.sum(), sde.w)))
    for ours in outcomes[1:]:
        for a, b in zip(ours, outcomes[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e3 * ROUNDING, atol=1e3 * ROUNDING)
    assert outcomes[1][1].shape == (len(TS) - 1, BATCH)


def test_logqp_of_constant_drifts_has_a_formula() -> None:
    """Half the square of the drifts' difference over the diffusion, times the length of each interval."""

    class Shifted:
        sde_type, noise_type = "ito", "diagonal"
        f, g, h = (staticmethod(lambda t, y, c=c: torch.full_like(y, c)) for c in (1.0, 0.5, 0.4))

    for options in ({"dt": 0.1}, {"adaptive": True, "dt": 0.1, "rtol": 0.1, "atol": 0.1}):
        _, ratio = sdeint(Shifted(), start(), TS, logqp=True, **options)
        torch.testing.assert_close(ratio, torch.full_like(ratio, CHANNELS * 0.5 * (0.6 / 0.5) ** 2 * 0.25))


def test_the_divergence_does_not_set_the_steps() -> None:
    path = BrownianPath(0.0, 1.0, (BATCH, CHANNELS + 1), seed=2)

    class Far(System):
        def h(self, t, y):
            return 1e4 * torch.cos(50 * t) * torch.ones_like(y)

    counts = []
    for sde in (System(), Far()):
        with regnde.recording("none") as log:
            sdeint(sde, start(), TS, path, adaptive=True, dt=0.05, rtol=1e-2, atol=1e-2, logqp=True)
        counts.append(log.nfe)
    assert counts[0] == counts[1]


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "calculus", "noise"),
    [
        ("euler", "ito", "general"),
        ("milstein", "ito", "scalar"),
        ("srk", "ito", "diagonal"),
        ("reversible_heun", "stratonovich", "general"),
    ],
)
def test_the_gradient_is_exact(method: str, calculus: str, noise: str) -> None:
    """Against central differences along one path; torchsde's adjoint is off by its own solve's error."""
    path = BrownianPath(0.0, 1.0, (BATCH, columns(noise)), seed=2)

    def value(w: torch.Tensor, solve=sdeint) -> torch.Tensor:
        sde = System(noise, calculus)
        del sde.w
        sde.w = w[0]
        return solve(sde, start(), TS, path, method, dt=0.1).square().sum()

    w = f64([-0.5]).requires_grad_()
    by_w = central_differences(value, f64([-0.5]), 1e-4)
    for solve in (sdeint, sdeint_adjoint):
        assert relative(torch.autograd.grad(value(w, solve), w)[0], by_w) < GRADIENT


def test_unused_parameters_get_zeros_from_the_adjoint() -> None:
    sde = System()
    sde.idle = nn.Parameter(torch.ones(3))
    arguments = {"adjoint_method": "euler", "adjoint_rtol": 1.0, "adjoint_options": {}, "adjoint_adaptive": True}
    sdeint_adjoint(sde, start(), TS, dt=0.1, **arguments).sum().backward()
    assert torch.equal(sde.idle.grad, torch.zeros(3))
    assert sde.w.grad.item() != 0
    outside = torch.ones(2, requires_grad=True)
    sdeint_adjoint(System(), start(), TS, dt=0.1, adjoint_params=[outside]).sum().backward()
    assert torch.equal(outside.grad, torch.zeros(2))


def test_milstein_for_one_process_takes_the_right_derivative() -> None:
    """A diffusion whose entries depend on other entries: torchsde multiplies by the transposed Jacobian there.

    A rotation by the angle 0.8 W keeps the length; Milstein's method does so with order 1.
    """

    class Turning:
        sde_type, noise_type = "stratonovich", "scalar"

        def f(self, t, y):
            return torch.zeros_like(y)

        def g(self, t, y):
            return 0.8 * torch.stack([-y[:, 1], y[:, 0]], 1).unsqueeze(-1)

    y0 = f64([[1.0, 0.0]]).expand(200, 2)
    path = BrownianPath(0.0, 1.0, (200, 1), seed=1)
    ends = [sdeint(Turning(), y0, [0.0, 1.0], path, "milstein", dt=dt)[-1] for dt in (1 / 16, 1 / 64)]
    errors = [float((end.norm(dim=1) - 1).square().mean().sqrt()) for end in ends]
    assert errors[1] < errors[0] / 2.5
    assert errors[1] < 0.02


# --- the method's own state -----------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
def test_a_reversible_solve_goes_back(noise: str) -> None:
    """With the carried values of its end, the negated equation along the reversed path leads to the start."""
    sde = System(noise, "stratonovich")

    class Back:
        noise_type, sde_type = noise, "stratonovich"
        f, g = staticmethod(lambda t, y: -sde.f(-t, y)), staticmethod(lambda t, y: -sde.g(-t, y))

    class Reversed(BrownianPath):
        def increment(self, s: float, t: float) -> regnde.Increment:
            return path.increment(-t, -s)

    path = BrownianPath(0.0, 1.0, (BATCH, columns(noise)), seed=2)
    with torch.no_grad():
        ys, (f, g, z) = sdeint(sde, start(), TS, path, "reversible_heun", dt=0.125, extra=True)
        back = sdeint(
            Back(),
            ys[-1],
            -TS.flip(0),
            Reversed(-1.0, 0.0, path.shape, seed=0),
            "reversible_heun",
            dt=0.125,
            extra_solver_state=(-f, -g, z),
        )
    torch.testing.assert_close(back.flip(0), ys, rtol=1e2 * ROUNDING, atol=1e2 * ROUNDING)


def test_extra_of_other_methods_is_empty() -> None:
    _, extra = sdeint(System(), start(), TS, dt=0.1, extra=True)
    assert extra == ()
    _, ratio, extra = sdeint(System(), start(), TS, dt=0.1, extra=True, logqp=True)
    assert ratio.shape == (4, BATCH)
    assert extra == ()


# --- the path, times and refusals -----------------------------------------------------------------


@pytest.mark.parametrize(("noise", "calculus"), [*itertools.product(NOISES, ("ito", "stratonovich"))])
def test_sdeint_is_a_function_of_the_seed(noise: str, calculus: str) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(sdeint(System(noise, calculus), start(), [0.0, 0.33, 1.0], dt=0.1).detach())
    assert runs[0].shape == (3, BATCH, CHANNELS)
    torch.testing.assert_close(runs[0], runs[1], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_added_up_in_the_dtype_of_the_times(dtype: torch.dtype) -> None:
    """Ten steps of 0.1 in float32 end at 1 beyond; no tiny step is left over that torchsde does not take."""
    with regnde.recording("none") as log:
        sdeint(System().to(dtype), start().to(dtype), torch.tensor([0.0, 0.3], dtype=dtype), dt=0.05)
    t, count = torch.tensor(0.0, dtype=dtype), 0
    while t < torch.tensor(0.3, dtype=dtype):
        t, count = t + 0.05, count + 1
    assert log.solutions[0].stats.accepted == count
    with pytest.raises(ValueError, match="resolution of ts"):
        sdeint(System(), start(), torch.tensor([1e4, 1e4 + 1], dtype=torch.float32), dt=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(method="magic"), "method='magic' is none for sde_type='ito': choose one of 'euler', 'milstein', 'srk'"),
        (dict(method="heun"), "none for sde_type='ito'"),
        (dict(sde=System("diagonal", "stratonovich"), method="srk"), "choose one of 'milstein', 'euler_heun'"),
        (dict(sde=System("general"), method="milstein"), "not for general noise"),
        (dict(sde=System("general", "stratonovich"), method="log_ode"), "do not add up"),
        (dict(sde=System("diagonal", "stratonovich"), method="reversible_heun", adaptive=True), "adaptive=True with"),
        (dict(names={"posterior": "h"}), "names for posterior: the roles are drift, diffusion"),
        (dict(names={"drift": "nothing"}), "must have f"),
        (dict(ts=torch.tensor([0.0, 1.0], requires_grad=True)), "gradient with respect to ts"),
        (dict(dt=torch.tensor(0.1, requires_grad=True)), "gradient with respect to dt"),
        (dict(ts=[0.0, 1.0, 0.5]), "strictly increasing"),
        (dict(ts=[1.0, 0.0]), "strictly increasing"),
        (dict(ts=[1.0]), "two or more"),
        (dict(dt=-0.1), "dt=-0.1 must be above zero"),
        (dict(y0=torch.ones(3)), r"shape \(batch, channels\)"),
        (dict(bm=BrownianPath(0.0, 1.0, (BATCH, 2))), r"needs \(4, 3\)"),
        (dict(bm=BrownianPath(0.0, 1.0, (2, 3))), r"\(batch, processes\)"),
        (dict(extra_solver_state=(1, 2, 3)), "of the method 'reversible_heun'"),
    ],
)
def test_what_sdeint_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sdeint(**{"sde": System(), "y0": start(), "ts": [0.0, 1.0], **arguments})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sde_type="backward"), "sde_type='backward'"),
        (dict(noise_type="white"), "noise_type='white'"),
        (dict(noise_type="scalar", g=lambda t, y: y.unsqueeze(-1).expand(*y.shape, 2)), "scalar noise has one process"),
        (dict(noise_type="additive", g=lambda t, y: torch.ones(3, 2)), r"must be a matrix of shape \(4, 3, 'm'\)"),
        (dict(noise_type="additive", g=lambda t, y: y.unsqueeze(-1)), "changes with the state"),
        (dict(noise_type="general", g=None, f=None), "must have f"),
        (dict(noise_type="general", g=None, g_prod=lambda t, y, v: y), "give bm="),
    ],
)
def test_what_sdes_are_refused(change: dict, message: str) -> None:
    sde = System()
    for name, value in change.items():
        object.__setattr__(sde, name, value)
    with pytest.raises(ValueError, match=message):
        sdeint(sde, start(), [0.0, 1.0], dt=0.5)


def test_log_ode_is_the_midpoint_rule_where_the_noise_commutes() -> None:
    path = BrownianPath(0.0, 1.0, (BATCH, 1), seed=2)
    sde = System("scalar", "stratonovich")
    a, b = (sdeint(sde, start(), TS, path, method, dt=0.1) for method in ("log_ode", "midpoint"))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="'davie' or 'foster'"):
        sdeint(sde, start(), TS, motion("scalar"), "log_ode", dt=0.1)


def test_unknown_options_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="unknown options 'step'"):
        sdeint(System(), start(), [0.0, 0.1], dt=0.1, options={"step": 3})


def test_penalties_of_a_divergence_and_of_adaptive_steps() -> None:
    """Four lines regularise a latent SDE that was written for torchsde."""
    sde = System()
    with regnde.recording() as log:
        ys, ratio = sdeint(sde, start(), TS, adaptive=True, dt=0.05, rtol=1e-2, atol=1e-2, logqp=True)
    penalty = log.penalty(regnde.ErrorPenalty("mean"))
    (ys.square().sum() + ratio.mean() + penalty).backward()
    assert float(penalty.detach()) > 0
    assert math.isfinite(sde.w.grad.item())


@pytest.mark.parametrize(("noise", "calculus"), [("diagonal", "ito"), ("general", "stratonovich")])
def test_penalties_of_compared_steps_have_their_gradient(noise: str, calculus: str) -> None:
    """The steps are bounded by the controller's largest factor here, so that nothing but the errors changes with w."""

    def value(w: torch.Tensor) -> torch.Tensor:
        sde = System(noise, calculus)
        del sde.w
        sde.w = w[0]
        path = BrownianPath(0.0, 1.0, (BATCH, columns(noise)), seed=2)
        with regnde.recording() as log:
            ys = sdeint(sde, start(), TS, path, adaptive=True, dt=0.02, rtol=0.1, atol=10.0)
        return ys.square().sum() + 1e3 * log.penalty(regnde.ErrorPenalty())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        w = f64([-0.5]).requires_grad_()
        by_w = central_differences(value, f64([-0.5]), 1e-4)
        assert relative(torch.autograd.grad(value(w), w)[0], by_w) < GRADIENT
