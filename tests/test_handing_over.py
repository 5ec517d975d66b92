"""Cases A3: what the package hands out can be pickled, copied, and sent between processes."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import regnde
from problems import exp_decay
from regnde import Balance, BrownianPath, ErrorPenalty, Local, Solver, Status, StiffnessPenalty
from regnde.comparators import RNODE, Hutchinson, TayNODE
from regnde.nn import MLP, BackwardGRU, LatentODE, NeuralODE, NeuralSDE

ATTRIBUTES = ("t", "dt", "error_ratio", "component", "stiffness", "nfe", "accepted", "rejected", "status")
Hand = Callable[[Any], Any]

HANDS: dict[str, Hand] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "oldest pickle": lambda thing: pickle.loads(pickle.dumps(thing, protocol=0)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def blow_up(record: str = "none") -> regnde.Solution:
    """Fails with a state and records that carry gradients."""
    w = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    return regnde.solve(lambda t, y: w * y * y, torch.ones(2, dtype=torch.float64), [0.0, 0.5, 2.0], record=record)


def failure(name: str) -> regnde.SolveError:
    with pytest.raises(regnde.SolveError) as caught:
        fail(name)
    return caught.value


def fail(name: str) -> regnde.Solution:
    if name == "underflow":
        return blow_up("all")
    w = torch.nn.Parameter(torch.ones(()))
    if name == "non-finite":
        return regnde.solve(lambda t, y: w * y / 0.0, torch.ones(2), [0.0, 1.0], record="all")
    solver = Solver(max_steps=3, batch="per-sample" if name == "per sample" else "joint")
    return regnde.solve(lambda t, y: -1000 * w * y, torch.ones(2, 1), [0.0, 1.0], solver, record="all")


FAILURES = {
    "underflow": (regnde.StepSizeUnderflow, Status.UNDERFLOW),
    "non-finite": (regnde.NonFiniteDynamics, Status.NON_FINITE),
    "max steps": (regnde.MaxStepsReached, Status.MAX_STEPS),
    "per sample": (regnde.MaxStepsReached, Status.MAX_STEPS),
}


def assert_same_failure(got: BaseException, wanted: regnde.SolveError) -> None:
    assert type(got) is type(wanted)
    assert str(got) == str(wanted)
    for name in ATTRIBUTES:
        assert getattr(got, name) == getattr(wanted, name), name
    assert torch.equal(got.solution.ys.detach(), wanted.solution.ys.detach())
    assert got.solution.stats == wanted.solution.stats
    assert torch.equal(got.solution.steps.stiffness.detach(), wanted.solution.steps.stiffness.detach())


@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.parametrize("name", FAILURES)
def test_case_A3_failures_are_copied_with_their_attributes(name: str, hand: str) -> None:
    error = failure(name)
    assert (type(error), error.status) == FAILURES[name]
    error.add_note("seen by a test")
    got = HANDS[hand](error)
    assert_same_failure(got, error)
    assert got.__notes__ == ["seen by a test"]
    assert got.solution.ys.requires_grad == (hand == "copy" and error.solution.ys.requires_grad)


def test_case_A3_any_subclass_of_a_failure_is_copied() -> None:
    class Mine(regnde.MaxStepsReached):
        def __init__(self, word: str, **fields: Any) -> None:
            super().__init__(f"{word}!", **fields)
            self.word = word

    solution = regnde.solve(exp_decay, [1.0], [0.0, 1.0])
    error = Mine("late", t=0.5, dt=0.1, solution=solution)
    got = copy.deepcopy(error)
    assert (type(got), str(got), got.word, got.t) == (Mine, str(error), "late", 0.5)


def test_case_A3_processes_hand_failures_over() -> None:
    """A pool goes on after a failure, and the results of the others arrive."""
    wanted = failure("underflow")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(one, name) for name in ("underflow", "", "max steps", "")]
        assert_same_failure(jobs[0].exception(timeout=300), wanted)
        assert_same_failure(jobs[2].exception(timeout=300), failure("max steps"))
        assert jobs[1].result(timeout=300).stats == jobs[3].result(timeout=300).stats
        assert jobs[1].result().steps.error.shape == (jobs[1].result().stats.accepted,)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with pytest.raises(regnde.StepSizeUnderflow) as caught:
            pool.map_async(one, ["", "underflow"]).get(timeout=300)
        assert_same_failure(caught.value, wanted)


def one(name: str) -> regnde.Solution:
    """A solution with gradients, or a failure."""
    if name:
        return fail(name)
    torch.manual_seed(0)
    return regnde.solve(MLP([2, 4, 2]), torch.ones(3, 2), [0.0, 1.0], record="all")


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("hand", HANDS)
def test_case_A3_solutions_with_gradients(hand: str, batch: str) -> None:
    net = MLP([2, 4, 2]).double()
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=batch == "joint")
    y0 = torch.ones(3, 2, dtype=torch.float64)
    solution = regnde.solve(net, y0, ts, Solver(batch=batch), record="all")
    got = HANDS[hand](solution)  # the stiffness was not asked for yet
    assert (got.stats, got.solver, got.status, got.engine) == (
        solution.stats,
        solution.solver,
        solution.status,
        solution.engine,
    )
    pairs = [(got.ys, solution.ys), (got.ts, solution.ts)]
    pairs += [(getattr(got.steps, n), getattr(solution.steps, n)) for n in ("t", "dt", "error", "stiffness")]
    for copied, own in pairs:
        assert torch.equal(copied.detach(), own.detach())
        assert copied.requires_grad == (hand == "copy" and own.requires_grad)
    penalty = ErrorPenalty("mean") + StiffnessPenalty("max")
    assert torch.equal(penalty(got), penalty(solution))
    torch.autograd.grad(penalty(solution) + solution.y1.sum(), list(net.parameters()))  # the graph is still there


def test_case_A3_steps_alone_and_torch_save() -> None:
    solution = regnde.solve(MLP([2, 4, 2]), torch.ones(3, 2), [0.0, 1.0], record=Local())
    assert torch.equal(pickle.loads(pickle.dumps(solution.steps)).stiffness, solution.steps.stiffness)
    assert not copy.deepcopy(solution.steps).error.requires_grad
    file = io.BytesIO()
    torch.save({"solution": solution}, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)["solution"].ys, solution.ys)


def test_case_A3_a_postponed_stiffness_is_formed() -> None:
    x = torch.ones(2, requires_grad=True)
    asked = []

    def stiffness() -> torch.Tensor:
        asked.append(True)
        return 3 * x

    steps = regnde.Steps(
        t=torch.ones(2), dt=torch.ones(2), error=2 * x, stiffness=stiffness, method="x", stability_size=3.5
    )
    for hand in HANDS.values():
        assert hand(steps).stiffness.tolist() == [3.0, 3.0]
    assert len(asked) == 1
    assert steps.stiffness.requires_grad


@dataclass(frozen=True)
class Late(regnde.StepPenalty):
    rate: float = 2.0

    def term(self, steps: regnde.Steps) -> torch.Tensor:
        return self.rate * steps.error * steps.t


@pytest.mark.parametrize("hand", HANDS)
def test_case_A3_other_public_objects(hand: str) -> None:
    over, error = HANDS[hand], ErrorPenalty("mean")
    trained = torch.nn.Parameter(torch.tensor(2.0))
    solution = regnde.solve(exp_decay, [1.0], [0.0, 1.0], record="all")
    for penalty in (error, 2 * error - StiffnessPenalty() / 3, -Late(rate=3.0), sum([error, error]), trained * error):
        assert torch.equal(over(penalty)(solution), penalty(solution))
    for equal in (
        Solver(rtol=1e-3),
        Local(seed=3),
        RNODE(jacobian=0.5),
        TayNODE(order=2),
        solution.stats,
        solution.solver,
        regnde.Progress(0, 1.0, 1.0, 0.0, 0.0, 7, 0.1),
        Status.SUCCESS,
    ):
        assert over(equal) == equal
    for kind in (regnde.EngineUnavailable, regnde.UnsupportedField):
        assert over(kind("why")).args == ("why",)
    path = BrownianPath(0.0, 3e-322, (2,), seed=5, resolution=1e-322).independent(2)
    assert torch.equal(over(path)(1e-322), path(1e-322))
    assert (over(path).depth, over(path).seed) == (path.depth, path.seed)

    p = torch.ones(3, requires_grad=True)
    balance = Balance(0.5, every=1)
    balance.update((p * p).sum(), 2 * p.sum(), [p])
    twin = over(balance)
    assert twin.value == balance.value
    assert twin.update(p.sum(), p.sum(), [p]) == balance.update(p.sum(), p.sum(), [p])


def test_case_A3_layers() -> None:
    flow = Hutchinson(MLP([2, 4, 2]))
    flow.draw(torch.ones(3, 2))
    net = MLP([2, 4, 2])
    end = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
    y0, z0 = torch.ones(3, 2), torch.ones(3, 3)
    t = torch.tensor(0.0)
    for hand in (HANDS["pickle"], copy.deepcopy):
        assert torch.equal(hand(flow)(t, z0), flow(t, z0))
        for layer in (NeuralODE(net, record="all"), NeuralODE(net, ts=end), NeuralODE(net, ts=[0.0, end[1:].sum()])):
            if all(isinstance(x, float) or x.is_leaf for x in layer.ts):  # as torch: a graph is not copied
                assert torch.equal(hand(layer)(y0).y1, layer(y0).y1)
        wiener = BrownianPath(0.0, 1.0, (3, 2), seed=1)
        noisy = NeuralSDE(net, MLP([2, 2]))
        assert torch.equal(hand(noisy)(y0, noise=wiener).y1, noisy(y0, noise=wiener).y1)
        latent = LatentODE(BackwardGRU(3, latent=2), net, torch.nn.Linear(2, 3), record="all")
        data = torch.ones(4, 5, 3), torch.ones(4, 5, 3), torch.linspace(0, 1, 5)
        made = latent(*data, sample=False)
        assert torch.equal(hand(latent)(*data, sample=False).values, made.values)
        twin = hand(made)
        assert torch.equal(twin.kl(), made.kl())
        assert not twin.values.requires_grad
        assert copy.copy(made).values.requires_grad


def test_status_is_an_enum_that_equals_its_text() -> None:
    solution = regnde.solve(exp_decay, [1.0], [0.0, 1.0])
    assert solution.status is Status.SUCCESS
    assert solution.status == "success"
    assert f"{solution.status}" == "success"
    partial = regnde.solve(exp_decay, [1.0], [0.0, 1.0], Solver(max_steps=1), throw=False)
    assert partial.status is Status.MAX_STEPS
    assert regnde.MaxStepsReached.status is Status.MAX_STEPS
    assert {s.value for s in Status} == {
        "success",
        "non-finite dynamics",
        "step size underflow",
        "max steps reached",
        "event",
    }


def test_repr_of_a_solution_is_one_line() -> None:
    solution = regnde.solve(exp_decay, np.ones((2, 3)), [0.0, 0.5, 2.0])
    s = solution.stats
    assert repr(solution) == (
        "Solution(engine='torch', method='tsit5', ts: 3 in [0, 2], state: (2, 3), "
        f"nfe={s.nfe}, accepted={s.accepted}, rejected={s.rejected}, status='success')"
    )
    assert solution == solution
    assert solution != regnde.solve(exp_decay, np.ones((2, 3)), [0.0, 0.5, 2.0])
