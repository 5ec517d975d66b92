"""Events of samples with step sizes of their own: each sample as if it were solved alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

import regnde
from problems import exp_decay
from regnde import ErrorPenalty, Event, Solver, Status
from tolerances import CANCELLED, EXACT, ROUNDING

METHODS = ("tsit5", "bs3", "vern7", "rosenbrock23")
TOLERANCE = 1e-6
TS = [0.0, 0.1, 0.7, 2.0, 2.9]
Y0 = [[2.0, 1.0], [1.5, 3.0], [1.01, -1.0], [5.0, 0.0]]
LEVELS = [1.3, 0.2, 1.0, 1e-3]  # the last one is not reached


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Falling:
    """y1' = -w y1, y2' = 0.3 y2, of rows, forward or backward in time; level is an event of y1 that stops."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign, self.ts = sign, [sign * t for t in TS]
        self.w, self.y0, self.levels = (f64(x).requires_grad_() for x in (0.7, Y0, LEVELS))
        self.inputs = [self.w, self.y0, self.levels]

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.sign * torch.stack([-self.w * y[:, 0], 0.3 * y[:, 1]], 1)

    def events(self, *one: int) -> list[Event]:
        """Of all samples, which tell their numbers, or of one."""

        def level(t: Tensor, y: Tensor, samples: Tensor) -> Tensor:
            return y[:, 0] - self.levels[samples]

        passing = Event(lambda t, y: y[:, :1] - 1.45, terminal=False, direction=-1)
        if not one:
            return [Event(level), passing]
        return [Event(lambda t, y: level(t, y, torch.tensor(one))[0]), passing]


@pytest.mark.parametrize("record", ["none", "all"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", METHODS)
def test_each_sample_is_as_if_alone(method: str, gradient: str, sign: float, record: str, engine: str) -> None:
    problem = Falling(sign)
    options = {"method": method, "rtol": TOLERANCE, "atol": TOLERANCE, "gradient": gradient, "engine": engine}
    options["dt0"] = 0.5  # not one whose error is rounding, from which the next size would follow
    solver, joint = Solver(**options, batch="per-sample"), Solver(**options)
    sol = regnde.solve(problem, problem.y0, problem.ts, solver, event=problem.events(), record=record)
    alone = [
        regnde.solve(problem, problem.y0[i : i + 1], problem.ts, joint, event=problem.events(i), record=record)
        for i in range(len(Y0))
    ]
    assert [s.status.value for s in alone] == ["event"] * 3 + ["success"]
    assert sol.status == Status.SUCCESS  # one of them went on to the end
    assert sol.ts.tolist() == problem.ts
    assert sol.events.sample.tolist() == [i for i, s in enumerate(alone) for _ in s.events.t]
    assert sol.events.which.tolist() == [int(which) for s in alone for which in s.events.which]
    counts = [(s.stats.accepted, s.stats.rejected) for s in alone]
    assert [(s.accepted, s.rejected) for s in sol.stats.samples] == counts

    expected = torch.cat([s.events.t for s in alone]), torch.cat([s.events.y for s in alone]).squeeze(1)
    rows = []
    for s in alone:  # a sample that stopped stays where it is
        saved = s.ys[:-1] if s.status == Status.EVENT else s.ys
        rows.append(torch.cat([saved, s.y1.expand(len(TS) - len(saved), *s.y1.shape)]))
    expected = (*expected, torch.cat(rows, 1))
    found = (sol.events.t, sol.events.y, sol.ys)
    if record == "all":
        expected = (*expected, sum(ErrorPenalty()(s) for s in alone))
        found = (*found, ErrorPenalty()(sol))
    for got, right in zip(found, expected, strict=True):
        tolerance = ROUNDING if got.ndim else CANCELLED
        torch.testing.assert_close(got, right, rtol=tolerance, atol=tolerance)
        weights = torch.linspace(0.5, 1.5, got.numel(), dtype=torch.float64).reshape(got.shape)
        pairs = ((x * weights).sum() for x in (got, right))
        of_got, of_right = (torch.autograd.grad(x, problem.inputs, retain_graph=True, allow_unused=True) for x in pairs)
        torch.testing.assert_close(of_got, of_right, rtol=CANCELLED, atol=CANCELLED)


def test_all_samples_stop(engine: str) -> None:
    problem = Falling()
    event = Event(lambda t, y: y[:, 0] - 0.9)
    sol = regnde.solve(problem, problem.y0, [0.0, 9.0], Solver(batch="per-sample", engine=engine), event=event)
    assert sol.status == Status.EVENT
    torch.testing.assert_close(sol.events.t, (problem.y0[:, 0] / 0.9).log() / problem.w, rtol=1e-5, atol=0)
    torch.testing.assert_close(sol.y1, sol.events.y, rtol=EXACT, atol=EXACT)
    assert "'event'" in repr(sol)
    for again in (copy.deepcopy(sol), pickle.loads(pickle.dumps(sol))):
        assert torch.equal(again.events.sample, sol.events.sample)
        assert not again.events.t.requires_grad


def test_a_bounce_within_the_first_step(engine: str) -> None:
    """A zero at the start is no event, and the one that follows in the same step is seen."""

    def thrown(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[:, 1], torch.full_like(y[:, 1], -9.81)], 1)

    speeds = f64([1.0, 0.1, 0.01])
    y0 = torch.stack([torch.zeros_like(speeds), speeds], 1)
    solver = Solver(batch="per-sample", dt0=0.25, engine=engine)
    sol = regnde.solve(thrown, y0, [0.0, 9.0], solver, event=Event(lambda t, y: y[:, 0], direction=-1))
    torch.testing.assert_close(sol.events.t, 2 * speeds / 9.81, rtol=CANCELLED, atol=0)


def test_states_of_several_parts_between_stops(engine: str) -> None:
    """The condition gets the structure of the state, and times that broadcast against the largest part."""

    def field(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        assert t.shape == (len(y["x"]), 1)
        return {"x": torch.where(t < 0.5, 1.0, -1.0) * torch.ones_like(y["x"]), "r": torch.zeros_like(y["r"])}

    def condition(t: Tensor, y: dict[str, Tensor], samples: Tensor) -> Tensor:
        assert t.shape == (len(y["x"]), 1)
        assert samples.shape == y["r"].shape
        return y["x"][:, 1] - y["r"]

    y0 = {"x": torch.zeros(3, 2, dtype=torch.float64), "r": f64([0.25, -0.25, 2.0])}
    solver = Solver(batch="per-sample", engine=engine)
    sol = regnde.solve(field, y0, [0.0, 2.0], solver, stops=[0.5], event=Event(condition))
    torch.testing.assert_close(sol.events.t, f64([0.25, 1.25]), rtol=CANCELLED, atol=0)
    assert sol.events.sample.tolist() == [0, 1]
    torch.testing.assert_close(sol.events.y["x"][:, 0], y0["r"][:2], rtol=CANCELLED, atol=0)
    torch.testing.assert_close(sol.y1["x"][:, 0], f64([0.25, -0.25, -1.0]), rtol=CANCELLED, atol=0)


def test_no_sample_and_no_event(engine: str) -> None:
    solver, event = Solver(batch="per-sample", engine=engine), Event(lambda t, y: y[:, 0] + 1)
    for y0, ts in ((torch.ones(0, 2), [0.0, 1.0]), (torch.ones(3, 2), [1.0, 1.0]), (torch.ones(3, 2), [0.0, 1.0])):
        if engine == "julia" and not len(y0):
            continue  # it takes states of one or more entries
        sol = regnde.solve(exp_decay, y0, ts, solver, event=event)
        assert sol.status == Status.SUCCESS
        assert sol.events.t.shape == sol.events.sample.shape == (0,)
        assert sol.events.y.shape == (0, 2)


def test_what_a_condition_of_samples_returns() -> None:
    y0, solver = f64([[1.0], [2.0]]), Solver(batch="per-sample", engine="torch")
    with pytest.raises(TypeError, match=r"real values of shape \(2,\), one for each sample, got shape \(\)"):
        regnde.solve(exp_decay, y0, [0.0, 1.0], solver, event=Event(lambda t, y: y[0, 0]))
    with pytest.raises(ValueError, match="nan for sample 1 at t=0"):
        regnde.solve(exp_decay, y0, [0.0, 1.0], solver, event=Event(lambda t, y: (1.5 - y[:, 0]).sqrt()))
