"""Solves recorded from outside: what a log holds, what its penalty is, and what it refuses."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import regnde
from frozen import Frozen
from problems import exp_decay, seeded, van_der_pol
from regnde import (
    Balance,
    ErrorPenalty,
    Local,
    LossBudget,
    Recording,
    Solver,
    SquaredErrorPenalty,
    StiffnessPenalty,
    fit,
    recording,
    solve,
)
from regnde.comparators import RNODE, solve_with_integral
from regnde.nn import MLP, BackwardGRU, LatentODE, NeuralODE, NeuralSDE
from tolerances import EXACT, GRADIENT, ROUNDING

TIMES = torch.tensor([0.0, 1.0], dtype=torch.float64)
Y0 = torch.tensor([2.0, 0.5], dtype=torch.float64)


FIRST = Solver(method="dp5", rtol=1e-6, atol=1e-8)
SECOND = Solver(method="tsit5", rtol=1e-5, atol=1e-7, gradient="checkpoint")


class Twice(nn.Module):
    """A model of which no solution comes out: two solves. `tests/clients` has such models on the drop-ins."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MLP([2, 8, 2]).double(), MLP([2, 8, 2]).double()

    def forward(self, y: Tensor) -> Tensor:
        return solve(self.second, solve(self.first, y, TIMES, FIRST).y1, TIMES, SECOND).y1

    def by_hand(self, y: Tensor, record: str | Local) -> list[regnde.Solution]:
        first = solve(self.first, y, TIMES, FIRST, record=record)
        return [first, solve(self.second, first.y1, TIMES, SECOND, record=record)]


class Decay:
    """An SDE in torchsde's style."""

    sde_type, noise_type = "ito", "diagonal"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.1 * y


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=ROUNDING, atol=ROUNDING)


def decay(record: str | Local = "none", times: tuple[float, ...] = (0.0, 1.0), **options: object) -> regnde.Solution:
    return solve(exp_decay, [1.0], times, Solver(**options), record=record)


# --- what a log holds ------------------------------------------------------------------------------


@pytest.mark.parametrize("record", ["all", Local(seed=3), Local(seed=3, sampling="step", step_size="initial")])
@pytest.mark.parametrize("penalty", [ErrorPenalty(), 2 * ErrorPenalty("mean") + StiffnessPenalty("max")])
def test_the_penalty_is_the_sum_over_the_solves(record: str | Local, penalty: regnde.Penalty) -> None:
    model = Twice()
    with recording(record) as log:
        model(Y0)
    solutions = model.by_hand(Y0, record)
    wanted = sum(penalty(solution) for solution in solutions)
    got = log.penalty(penalty)
    close(got, wanted)
    assert log.nfe == sum(solution.stats.nfe for solution in solutions)
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(got, parameters), torch.autograd.grad(wanted, parameters)
    for a, b in zip(*slopes, strict=True):
        close(a, b)
    assert any(bool(a.any()) for a in slopes[0][:4])
    assert any(bool(a.any()) for a in slopes[0][-4:])


def test_the_gradient_is_that_of_the_steps_that_were_taken() -> None:
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    with recording() as log:
        solve(lambda t, y: w * van_der_pol(1.0)(t, y), Y0, 5 * TIMES, Solver(method="dp5", rtol=1e-6, atol=1e-6))
    got = torch.autograd.grad(log.penalty(SquaredErrorPenalty()), w)[0]
    frozen = Frozen.of(log.solutions[0], 0.0)

    def replayed(factor: float) -> float:
        y, total = Y0, 0.0
        for t, h in zip(frozen.begins, frozen.sizes, strict=True):
            y, vectors = frozen.one(lambda s, x: factor * van_der_pol(1.0)(s, x), t, h, y)
            total += float(vectors[0].square().mean())
        return total

    assert float(got) == pytest.approx((replayed(1 + 1e-6) - replayed(1 - 1e-6)) / 2e-6, rel=GRADIENT)


def test_states_and_evaluations_are_those_without_a_recording() -> None:
    model = Twice()
    before = model(Y0)
    with recording() as log:
        during = model(Y0)
    torch.testing.assert_close(during, before, rtol=EXACT, atol=EXACT)
    with recording("none") as counted:
        model(Y0)
    assert counted.nfe == log.nfe == sum(s.stats.nfe for s in model.by_hand(Y0, "none"))
    assert [s.steps for s in counted.solutions] == [None, None]


WAYS: dict[str, Callable[[], object]] = {
    "solve": decay,
    "per sample": lambda: solve(exp_decay, torch.ones(4, 1), [0.0, 1.0], Solver(batch="per-sample")),
    "checkpoint": lambda: decay(gradient="checkpoint"),
    "NeuralODE": lambda: NeuralODE(MLP([2, 4, 2]))(torch.ones(3, 2)),
    "NeuralODE.eval()": lambda: NeuralODE(MLP([2, 4, 2])).eval()(torch.ones(3, 2)),
    "NeuralSDE": lambda: NeuralSDE(MLP([2, 4, 2]), MLP([2, 2]))(torch.ones(3, 2)),
    "LatentODE": lambda: LatentODE(BackwardGRU(3, latent=2), MLP([2, 4, 2]), nn.Linear(2, 3))(
        torch.ones(2, 4, 3), torch.ones(2, 4, 3), torch.linspace(0, 1, 4)
    ),
    "integral": lambda: solve_with_integral(MLP([2, 4, 2]), torch.ones(3, 2), [0.0, 1.0], RNODE()),
    "dict": lambda: solve(lambda t, y: {"a": -y["a"]}, {"a": torch.ones(2)}, [0.0, 1.0]),
    "tuple": lambda: regnde.odeint(exp_decay_of_parts, (torch.ones(1), torch.ones(2)), TIMES.float()),
    "sdeint": lambda: regnde.sdeint(Decay(), torch.ones(4, 3), [0.0, 1.0], dt=0.1, adaptive=True, rtol=1e-2),
    "compiled": lambda: torch.compile(lambda y: decay().y1 + y, backend="eager")(torch.ones(1)),
}


def exp_decay_of_parts(t: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(-part for part in parts)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_solve_is_recorded(way: str) -> None:
    with recording() as log:
        WAYS[way]()
    assert len(log.solutions) == 1
    assert log.nfe == log.solutions[0].stats.nfe > 0
    with torch.no_grad():
        assert float(log.penalty(ErrorPenalty())) == float(ErrorPenalty()(log.solutions[0])) > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # by torch.compile
def test_a_compiled_block_may_hold_the_recording() -> None:
    w = torch.tensor(1.0, requires_grad=True)

    def loss(y: Tensor) -> Tensor:
        with recording() as log:
            y1 = solve(lambda t, y: -w * y, y, [0.0, 1.0], Solver(engine="torch")).y1
        return y1.sum() + log.penalty(ErrorPenalty())

    wanted = torch.autograd.grad(loss(torch.ones(2)), w)[0]
    assert torch.equal(torch.autograd.grad(torch.compile(loss, backend="eager")(torch.ones(2)), w)[0], wanted)


def test_julia_records_from_outside(julia: None) -> None:
    field = MLP([2, 4, 2]).double()
    solver = Solver(engine="julia")
    with recording() as log:
        assert solve(field, Y0, TIMES, solver).steps is None
    wanted = solve(field, Y0, TIMES, solver, record="all")
    assert log.solutions[0].engine == "julia"
    close(log.penalty(ErrorPenalty()), ErrorPenalty()(wanted))


# --- several recordings, threads, tasks --------------------------------------------------------------


def test_nested_recordings_have_the_solves_of_their_blocks() -> None:
    with recording() as outer:
        decay()
        with recording() as inner, recording("none") as counted:
            decay(times=(0.0, 3.0))
        decay()
    decay()
    assert (len(outer.solutions), len(inner.solutions), len(counted.solutions)) == (3, 1, 1)
    assert inner.solutions[0] is outer.solutions[1]
    assert counted.nfe == inner.nfe
    assert (outer.is_open, inner.is_open) == (False, False)


def test_a_recording_may_be_opened_within_itself_and_again() -> None:
    log = recording()
    with log, log:
        decay()
        with log:
            decay()
        decay()
    decay()
    assert len(log.solutions) == 3
    with log:
        decay()
    assert len(log.solutions) == 4
    assert repr(log) == f"Recording('all', 4 solves, nfe={log.nfe}, closed)"
    log.clear()
    assert (log.solutions, log.nfe) == ((), 0)


def test_a_function_that_records_may_call_itself() -> None:
    def depth(n: int) -> list[int]:
        with recording() as log:
            decay()
            below = depth(n - 1) if n else []
        return [*below, len(log.solutions)]

    assert depth(3) == [1, 2, 3, 4]


def test_an_error_closes_the_block() -> None:
    with pytest.raises(KeyError), recording() as log:
        raise KeyError
    decay()
    assert not log.solutions


def test_threads_have_recordings_of_their_own() -> None:
    found: dict[str, int] = {}
    barrier = threading.Barrier(2)

    def work(name: str, solves: int) -> None:
        with recording() as log:
            barrier.wait(30)
            for _ in range(solves):
                decay()
            barrier.wait(30)
        found[name] = len(log.solutions)

    with recording() as here:
        threads = [threading.Thread(target=work, args=(name, n)) for name, n in (("one", 1), ("two", 2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        joined = threading.Thread(target=lambda: here.__enter__() and decay() and here.__exit__(None, None, None))
        joined.start()
        joined.join(60)
    assert found == {"one": 1, "two": 2}
    assert len(here.solutions) == 1  # of the thread that opened it itself


def test_tasks_have_recordings_of_their_own_and_a_late_one_adds_nothing() -> None:
    async def work(solves: int) -> int:
        with recording() as log:
            for _ in range(solves):
                decay()
                await asyncio.sleep(0)
        return len(log.solutions)

    async def late(closed: asyncio.Event) -> None:
        decay()
        await closed.wait()
        decay()

    async def all_of_them() -> tuple[list[int], Recording]:
        counts = await asyncio.gather(work(1), work(3))
        closed = asyncio.Event()
        with recording() as log:
            task = asyncio.create_task(late(closed))
            await asyncio.sleep(0)
        closed.set()
        await task
        return counts, log

    counts, log = asyncio.run(all_of_them())
    assert counts == [1, 3]
    assert len(log.solutions) == 1


def test_a_generator_that_is_closed_elsewhere_leaves_other_recordings_alone() -> None:
    def opened() -> Iterator[Recording]:
        with recording() as log:
            yield log

    run = opened()
    inner = next(run)
    with recording() as outer:
        run.close()
        decay()
    assert (len(inner.solutions), len(outer.solutions)) == (0, 1)


def test_recordings_that_want_different_records_are_refused_at_the_solve() -> None:
    with recording() as outer, recording(Local(seed=1)) as inner:
        with pytest.raises(ValueError, match=r"record='all' and record=Local\(.*one record: open them with the same"):
            decay()
        assert decay("all").steps is not None  # it says itself which
    assert len(inner.solutions) == len(outer.solutions) == 1
    with recording(Local(seed=1)) as outer, recording(Local(seed=1)) as inner:
        decay()
    assert inner.solutions == outer.solutions
    with pytest.raises(ValueError, match="recording\\('local'\\): choose 'all'"):
        recording("local")


# --- records of a solve's own, and solves without records ----------------------------------------------


def test_a_solve_keeps_the_record_that_it_asks_for() -> None:
    with recording() as log:
        assert decay().steps is None
        assert len(decay("all").steps or ()) > 1
        assert len(decay(Local(seed=1)).steps or ()) == 1
    assert [len(s.steps or ()) > 1 for s in log.solutions] == [True, True, False]
    wanted = 2 * ErrorPenalty("mean")(decay("all")) + ErrorPenalty("mean")(decay(Local(seed=1)))
    close(log.penalty(ErrorPenalty("mean")), wanted)


def test_a_method_of_fixed_step_size_has_evaluations_and_no_penalty() -> None:
    with recording() as log:
        decay()
        regnde.odeint(exp_decay, Y0, TIMES, method="rk4", options={"step_size": 0.25})
    assert log.nfe == decay().stats.nfe + 16
    with pytest.raises(ValueError, match=r"solve 2 of 2 \(method 'rk38'\).*estimates no error.*adaptive method"):
        log.penalty(ErrorPenalty())
    with recording(Local()) as log:
        decay(method="euler", dt0=0.25)
    assert log.nfe == 4
    with pytest.raises(ValueError, match=r"solve 1 of 1 \(method 'euler'\) has no records: .*nothing for a local rec"):
        log.penalty(ErrorPenalty())


def test_the_solves_of_scipy_are_counted_and_have_no_penalty() -> None:
    calls = []

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return exp_decay(t, y)

    rate = nn.Linear(2, 2).double()
    with recording() as log:
        decay()
        regnde.odeint(counted, Y0, TIMES, method="scipy_solver")
        ys = regnde.odeint_adjoint(
            lambda t, y: rate(y), Y0, TIMES, method="scipy_solver", adjoint_params=[*rate.parameters()]
        )
        ys.sum().backward()  # the backward solve is not counted
    own = decay().stats.nfe
    assert len(log.solutions) == 1
    assert log.nfe > own + len(calls) > own
    with pytest.raises(ValueError, match=r"has no records: the steps of 'scipy_solver' are scipy's.*are counted"):
        log.penalty(ErrorPenalty())
    forward = log.nfe
    log.clear()
    assert log.nfe == 0 < forward
    with recording() as log, pytest.raises(RuntimeError, match="did not get beyond"):
        regnde.odeint(lambda t, y: y * y, Y0, TIMES, method="scipy_solver", options={"solver": "RK45"})
    assert log.nfe > 0


def test_what_a_local_record_can_not_be_had_of_runs_without() -> None:
    with recording(Local()) as log:
        solution = solve(exp_decay, torch.ones(4, 1), [0.0, 1.0], Solver(batch="per-sample"))
    assert log.nfe == solution.stats.nfe
    with pytest.raises(ValueError, match="no records: batch='per-sample' records 'none' or 'all'"):
        log.penalty(ErrorPenalty())


def test_steps_of_a_given_size_have_no_tolerance_that_errors_are_scaled_by() -> None:
    with recording() as log:
        regnde.sdeint(Decay(), torch.ones(4, 3), [0.0, 1.0], dt=0.25)
    assert log.nfe > 0
    with pytest.raises(ValueError, match="has no records: sdeint without adaptive=True"):
        log.penalty(ErrorPenalty())


def test_a_refused_solve_is_refused_as_without_a_recording() -> None:
    for solver in (Solver(method="none such"), Solver(method="euler")):
        with pytest.raises(ValueError, match=r".") as wanted:
            solve(exp_decay, [1.0], [0.0, 1.0], solver)
        with pytest.raises(ValueError, match=r".") as got, recording(Local()):
            solve(exp_decay, [1.0], [0.0, 1.0], solver)
        assert str(got.value) == str(wanted.value)


def test_a_penalty_of_no_solves_is_an_error() -> None:
    with recording() as log:
        exp_decay(TIMES[0], Y0)
    with pytest.raises(ValueError, match=r"there is no solve.*regnde\.install.*thread"):
        log.penalty(ErrorPenalty())
    with recording("none") as log:
        decay()
    with pytest.raises(ValueError, match=r"opened with record='none'"):
        log.penalty(ErrorPenalty())


def test_a_failed_solve_is_counted_and_left_out() -> None:
    with recording() as log:
        with pytest.raises(regnde.MaxStepsReached) as failure:
            decay(max_steps=2, rtol=1e-10)
        partial = solve(exp_decay, [1.0], [0.0, 1.0], Solver(max_steps=2, rtol=1e-10), throw=False)
        whole = decay()
    assert log.nfe == failure.value.nfe + partial.stats.nfe + whole.stats.nfe
    assert [s.status for s in log.solutions] == ["max steps reached", "success"]


# --- gradients that are not there -----------------------------------------------------------------------


def test_solves_without_gradients_add_a_constant() -> None:
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def solved() -> regnde.Solution:
        return solve(lambda t, y: -w * y, Y0, TIMES, record="all")

    with recording() as log:
        with torch.no_grad():
            solved()
        solved()
    one = ErrorPenalty()(solved())
    got = log.penalty(ErrorPenalty())
    close(got, 2 * one)
    close(torch.autograd.grad(got, w)[0], torch.autograd.grad(one, w)[0])


def test_a_penalty_that_can_have_no_gradient_is_looked_at_without() -> None:
    for switched_off in (torch.no_grad(), torch.inference_mode()):
        with switched_off, recording() as log:
            decay()
        with pytest.raises(ValueError, match=r"made under torch\.no_grad\(\).*call penalty under torch\.no_grad\(\)"):
            log.penalty(ErrorPenalty())
        with torch.no_grad():
            assert float(log.penalty(ErrorPenalty())) > 0


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's forward mode
def test_inside_a_transform_a_penalty_has_its_derivative() -> None:
    def penalty(w: Tensor, log: Recording) -> Tensor:
        with log:
            solve(lambda t, y: -w * y, Y0, TIMES)
        return log.penalty(ErrorPenalty())

    w = torch.tensor(1.0, dtype=torch.float64)
    wanted = torch.autograd.grad(penalty(w.requires_grad_(), recording()), w)[0]
    close(torch.func.grad(penalty)(w.detach(), recording()), wanted)
    close(torch.func.jvp(lambda w: penalty(w, recording()), (w.detach(),), (torch.ones_like(w),))[1], wanted)
    log = recording()
    torch.func.grad(penalty)(w.detach(), log)
    assert log.nfe > 0
    with pytest.raises(ValueError, match=r"inside a transform of torch\.func that has ended"):
        log.penalty(ErrorPenalty())
    log.clear()
    with pytest.raises(ValueError, match=r"transform"):  # the inner one's records, in the outer one
        torch.func.grad(lambda w: torch.func.grad(penalty)(w, log) + log.penalty(ErrorPenalty()))(w.detach())


def test_a_checkpoint_around_the_model_is_recorded_once() -> None:
    model, penalty = Twice(), ErrorPenalty("mean")
    with recording() as log:
        wanted = model(Y0).sum()
    (wanted + log.penalty(penalty)).backward()
    slopes = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    with recording() as log:
        loss = torch.utils.checkpoint.checkpoint(model, Y0, use_reentrant=False).sum()
        (loss + log.penalty(penalty)).backward()  # evaluates the model again
    assert len(log.solutions) == 2
    for parameter, slope in zip(model.parameters(), slopes, strict=True):
        close(parameter.grad, slope)
    y0 = Y0.clone().requires_grad_()
    with recording() as log:
        torch.utils.checkpoint.checkpoint(model, y0, use_reentrant=True).sum().backward()
    assert len(log.solutions) == 2
    with pytest.raises(ValueError, match="use_reentrant=True"):
        log.penalty(penalty)


def test_a_diagnosis_is_not_recorded() -> None:
    with recording() as log:
        regnde.diagnose(exp_decay, [1.0], [0.0, 1.0])
    assert not log.solutions


# --- memory, copies --------------------------------------------------------------------------------


def test_graphs_live_as_long_as_the_log() -> None:
    def recorded() -> tuple[Recording, weakref.ref[Tensor]]:
        w = torch.ones(2, requires_grad=True)
        with recording() as log:
            solve(lambda t, y: -w * y, torch.ones(2), [0.0, 1.0])
        return log, weakref.ref(log.solutions[0].ys)

    log, states = recorded()
    gc.collect()
    assert states() is not None
    log.clear()
    gc.collect()
    assert states() is None
    log, states = recorded()
    del log
    assert states() is None  # without waiting for the garbage collector


@pytest.mark.parametrize("hand", [copy.deepcopy, lambda log: pickle.loads(pickle.dumps(log))])
def test_a_log_can_be_handed_over(hand: Callable[[Recording], Recording]) -> None:
    with recording() as log:
        decay()
    twin = hand(log)
    assert twin.nfe == log.nfe
    with torch.no_grad():
        assert float(twin.penalty(ErrorPenalty())) == float(log.penalty(ErrorPenalty()))


# --- training ----------------------------------------------------------------------------------------


DATA = [torch.randn(8, 2, dtype=torch.float64, generator=seeded(i)) for i in range(2)]


def trained(compute: Callable[[Twice, Tensor], object], **options: object) -> tuple[list[regnde.Progress], Twice]:
    torch.manual_seed(1)
    model = Twice()
    sgd = torch.optim.SGD(model.parameters(), 0.05)
    options = {"penalty": ErrorPenalty("mean"), "weight": 0.5, **options}
    return list(fit(lambda x: compute(model, x), DATA * 2, sgd, **options)), model


def loss_alone(model: Twice, x: Tensor) -> Tensor:
    return (model(x) - 2 * x).square().mean()


def recorded_by_hand(model: Twice, x: Tensor) -> tuple[Tensor, regnde.Solution]:
    first, second = model.by_hand(x, "all")
    return (second.y1 - 2 * x).square().mean() + 0.5 * ErrorPenalty("mean")(first), second


def test_fit_records_where_compute_returns_a_loss_alone() -> None:
    got, model = trained(loss_alone)
    wanted, by_hand = trained(recorded_by_hand)
    for a, b in zip(model.parameters(), by_hand.parameters(), strict=True):
        close(a, b)
    assert [p.loss for p in got] == pytest.approx([p.loss for p in wanted], rel=ROUNDING)
    assert all(a.nfe > b.nfe > 0 for a, b in zip(got, wanted, strict=True))  # both solves, the second alone
    plain, _ = trained(loss_alone, penalty=None)
    assert plain[0].nfe == got[0].nfe
    assert plain[0].penalty == 0.0


def test_fit_takes_the_record() -> None:
    steps, _ = trained(loss_alone, record=Local(seed=4))
    torch.manual_seed(1)
    model = Twice()
    first, second = model.by_hand(DATA[0], Local(seed=4))
    assert steps[0].penalty == pytest.approx(
        float((ErrorPenalty("mean")(first) + ErrorPenalty("mean")(second)).detach())
    )
    assert steps[0].nfe == first.stats.nfe + second.stats.nfe


@pytest.mark.parametrize("weight", [Balance(0.3), LossBudget(None), LossBudget(10.0)])
def test_weights_that_set_themselves_see_the_sum(weight: Balance | LossBudget) -> None:
    steps, _ = trained(loss_alone, weight=weight, accumulate=2)
    assert all(s.weight > 0 and s.penalty > 0 for s in steps)


def test_fit_says_that_nothing_was_recorded() -> None:
    with pytest.raises(ValueError, match=r"there is no solve.*regnde\.install"):
        trained(lambda model, x: (model.first(TIMES[0], x) - x).square().mean())
    with pytest.raises(ValueError, match=r"estimates no error"):
        trained(lambda model, x: regnde.odeint(model.first, x, TIMES, method="rk4").sum())


def test_fit_drops_the_solutions_before_the_next_batch() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def compute(model: Twice, x: Tensor) -> Tensor:
        assert all(states() is None for states in alive)
        y1 = model(x)
        alive.append(weakref.ref(y1))
        return y1.square().mean()

    trained(compute)
    assert len(alive) == 4


def test_lbfgs_records_every_evaluation() -> None:
    model = Twice()
    lbfgs = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3)
    steps = list(fit(lambda x: loss_alone(model, x), DATA[:1] * 2, lbfgs, penalty=ErrorPenalty("mean"), weight=1e-2))
    assert steps[1].loss < steps[0].loss


def test_cheapen_takes_a_loss_alone() -> None:
    torch.manual_seed(0)
    model = Twice()
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    list(fit(lambda x: loss_alone(model, x), DATA * 10, adam))
    run = regnde.cheapen(lambda x: loss_alone(model, x), DATA, adam, budget=0.5, iterations=20)
    solves = [s for x in DATA for s in model.by_hand(x, "none")]
    assert run.before.nfe == sum(s.stats.nfe for s in solves) / len(DATA)
    assert run.before.steps == sum(s.stats.accepted + s.stats.rejected for s in solves) / len(solves)
    list(run)
    assert run.best.nfe <= run.before.nfe
    assert run.best.loss <= run.allowed
    with pytest.raises(ValueError, match="cheapen: compute made no solve that was seen"):
        regnde.cheapen(lambda x: x.mean(), DATA, adam)
