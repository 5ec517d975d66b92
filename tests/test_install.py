"""The drop-ins in the place of other packages' functions: every place that holds one, and all of it undone."""

from __future__ import annotations

import functools
import gc
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import regnde
from regnde import install

theirs = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed (pip install regnde[test])")
ORIGINALS = (theirs.odeint, theirs.odeint_adjoint)  # a tuple: no place that is searched
Y0, TIMES = torch.ones(2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)

CLIENT = """
    import functools
    import torchdiffeq
    import torchdiffeq as tde
    from torch import nn
    from torchdiffeq import odeint_adjoint as odeint
    from torchdiffeq import odeint as direct

    SOLVERS = {"adjoint": odeint, "direct": direct}
    CHOICE = [direct, None]
    solve = functools.partial(direct, method="dopri5", rtol=1e-5)

    class Block(nn.Module):
        solver = staticmethod(odeint)
        methods = {"adjoint": odeint}

        class Inner:
            raw = direct

        def __init__(self, odeint=odeint):
            super().__init__()
            self.odeint = odeint
            self.choices = {"first": direct}

    def defaults(f, y, t, solver=direct, *, other=odeint):
        return solver(f, y, t), other(f, y, t)

    def enclosing(solver):
        def call(f, y, t):
            return solver(f, y, t)
        return call

    closed = enclosing(direct)
    block = Block()
    number, nothing = 1, None
"""


@pytest.fixture
def client() -> Iterator[ModuleType]:
    module = loaded("regnde_test_client", CLIENT)
    yield module
    del sys.modules["regnde_test_client"]


def loaded(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    sys.modules[name] = module
    exec(textwrap.dedent(source), vars(module))
    return module


def held(m: ModuleType) -> dict[str, object]:
    """What each place of a client holds."""
    return {
        "odeint": m.odeint,
        "direct": m.direct,
        "SOLVERS['adjoint']": m.SOLVERS["adjoint"],
        "SOLVERS['direct']": m.SOLVERS["direct"],
        "CHOICE[0]": m.CHOICE[0],
        "partial": m.solve.func,
        "Block.solver": m.Block.solver,
        "Block.methods": m.Block.methods["adjoint"],
        "Block.Inner.raw": m.Block.Inner.raw,
        "Block().odeint": m.block.odeint,
        "Block().choices": m.block.choices["first"],
        "Block.__init__": inspect.signature(m.Block.__init__).parameters["odeint"].default,
        "default": inspect.signature(m.defaults).parameters["solver"].default,
        "keyword default": inspect.signature(m.defaults).parameters["other"].default,
        "closure": m.closed.__closure__[0].cell_contents,
        "attribute": m.torchdiffeq.odeint,
        "alias": m.tde.odeint_adjoint,
    }


class Decay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -self.w * y


def is_ours(function: object) -> bool:
    """Whether a function is seen by a recording, as only ours are."""
    with regnde.recording("none") as log:
        function(Decay(), Y0, TIMES)  # type: ignore[operator]
    return len(log.solutions) == 1


def test_every_place_is_replaced_and_restored(client: ModuleType) -> None:
    before, identities = held(client), {name: id(value) for name, value in vars(client).items()}
    assert not any(map(is_ours, before.values()))
    installation = install("torchdiffeq")
    assert all(map(is_ours, held(client).values())), [name for name, f in held(client).items() if not is_ours(f)]
    for place in (
        "torchdiffeq.odeint",
        "torchdiffeq.odeint_adjoint",
        "regnde_test_client.odeint",
        "regnde_test_client.SOLVERS['direct']",
        "regnde_test_client.Block.solver",
        "regnde_test_client.Block.Inner.raw",
        "<regnde_test_client.Block object>.odeint",
        "regnde_test_client.defaults (default)",
        "regnde_test_client.defaults (default of other)",
        "regnde_test_client.enclosing.<locals>.call (variable solver)",
        "functools.partial of odeint",
    ):
        assert place in installation.replaced
        assert place in str(installation)
    assert {"torchdiffeq.odeint_event", "torchdiffeq.odeint_dense"} <= set(installation.replaced)
    assert "Left as they are" not in repr(installation)
    assert client.solve.keywords == {"method": "dopri5", "rtol": 1e-5}
    assert (client.number, client.nothing) == (1, None)
    installation.undo()
    after = held(client)
    assert all(after[name] is before[name] for name in before)
    changed = {name for name, value in vars(client).items() if id(value) != identities[name]}
    assert not changed, "the objects themselves stay: classes, dicts, partials"
    assert isinstance(vars(client.Block)["solver"], staticmethod)


def test_modules_loaded_in_between_are_restored_too(client: ModuleType) -> None:
    with install("torchdiffeq"):
        later = loaded("regnde_test_later", CLIENT)
        private = loaded("regnde_test_private", "from torchdiffeq._impl.adjoint import odeint_adjoint as odeint")
        assert all(map(is_ours, held(later).values()))
        assert not is_ours(private.odeint)
        again = install("torchdiffeq")  # finds what was loaded since
        assert is_ours(private.odeint)
        assert again.replaced == ("regnde_test_private.odeint",)
    try:
        assert not any(map(is_ours, (*held(later).values(), *held(client).values(), private.odeint)))
        assert (theirs.odeint, theirs.odeint_adjoint) == ORIGINALS
        assert later.odeint is ORIGINALS[1]
    finally:
        del sys.modules["regnde_test_later"], sys.modules["regnde_test_private"]


def test_a_module_outside_of_sys_modules_is_found() -> None:
    module = loaded("regnde_test_hidden", CLIENT)
    del sys.modules["regnde_test_hidden"]
    with install("torchdiffeq"):
        assert is_ours(module.odeint)
        assert is_ours(module.Block.solver)
    assert module.odeint is ORIGINALS[1]


def test_functions_of_regnde_itself_stay(client: ModuleType) -> None:
    own = loaded("regnde_test_own", "from regnde import odeint")
    with install("torchdiffeq"):
        assert own.odeint is regnde.odeint
        assert theirs.odeint is not regnde.odeint
    assert own.odeint is regnde.odeint
    del sys.modules["regnde_test_own"]


def test_it_is_idempotent_and_nests(client: ModuleType) -> None:
    with install("torchdiffeq") as outer:
        ours = client.odeint
        with install("torchdiffeq", "torchdiffeq") as inner:
            assert client.odeint is ours
            assert inner.replaced == ()
        assert client.odeint is ours, "an installation of before the block stays"
        assert outer.packages == inner.packages == ("torchdiffeq",)
    assert client.odeint is ORIGINALS[1]
    outer.undo()
    assert client.odeint is ORIGINALS[1]
    with pytest.raises(ValueError, match="was undone"), outer:
        pass
    install("torchdiffeq")
    install("torchdiffeq").undo()  # a cell of a notebook that ran twice
    assert client.odeint is ORIGINALS[1]
    with pytest.raises(KeyError), install("torchdiffeq"):
        raise KeyError
    assert client.odeint is ORIGINALS[1]


def test_a_package_that_was_patched_in_between_is_whole_again(client: ModuleType) -> None:
    installation = install("torchdiffeq")
    theirs.odeint = ORIGINALS[0]  # by someone else
    assert not is_ours(theirs.odeint)
    with install("torchdiffeq"):
        assert all(map(is_ours, held(client).values()))
    assert not any(map(is_ours, held(client).values()))
    installation.undo()
    assert (theirs.odeint, theirs.odeint_adjoint) == ORIGINALS


def test_their_own_functions_work_as_before_meanwhile() -> None:
    """Someone who holds a function of theirs gets theirs to the bottom: the adjoint solves backwards, events end."""
    decay = Decay()
    event = theirs.odeint_event  # a variable of a running function: `install` leaves it
    time, _ = event(lambda t, y: -y, Y0, TIMES[0], event_fn=lambda t, y: y[0] - 0.5)
    wanted = ORIGINALS[1](decay, Y0, TIMES)[-1]
    with install("torchdiffeq"), regnde.recording("none") as log:
        got = ORIGINALS[1](decay, Y0, TIMES)[-1]
        assert "OdeintAdjoint" in type(got.grad_fn.next_functions[0][0]).__name__
        got.sum().backward()
        during, _ = event(lambda t, y: -y, Y0, TIMES[0], event_fn=lambda t, y: y[0] - 0.5)
    assert log.solutions == ()
    assert torch.equal(got, wanted)
    assert torch.equal(during, time)


def test_a_function_is_pickled_by_the_name_of_their_package() -> None:
    with install("torchdiffeq"):
        ours = theirs.odeint
        data = pickle.dumps((ours, functools.partial(ours, method="dopri5")))
        assert pickle.loads(data)[0] is ours
        assert inspect.signature(ours) == inspect.signature(regnde.odeint)
        assert ours.__doc__ == regnde.odeint.__doc__
    assert pickle.loads(data)[0] is ORIGINALS[0]


def test_strange_objects_are_left_alone() -> None:
    """Objects that run code, or raise, where they are looked at."""

    class Proxy:
        @property
        def __class__(self) -> type:
            raise RuntimeError("looked at")

        def __getattribute__(self, name: str) -> object:
            raise RuntimeError("looked at")

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("imported")

    def recursive() -> object:
        return late

    kept = [Proxy(), Lazy("regnde_test_lazy"), recursive, functools.partial(print, Proxy())]
    sys.modules["regnde_test_lazy"] = kept[1]  # type: ignore[assignment]
    sys.modules["regnde_test_proxy"] = kept[0]  # type: ignore[assignment]
    try:
        with install("torchdiffeq"):
            assert is_ours(theirs.odeint)
    finally:
        del sys.modules["regnde_test_lazy"], sys.modules["regnde_test_proxy"]
    late = None
    assert recursive() is late


def test_without_a_collector_loaded_modules_are_found(client: ModuleType) -> None:
    """`gc.freeze`, as servers call it, hides objects from the collector: what modules name is found all the same."""
    gc.freeze()
    try:
        with install("torchdiffeq"):
            assert is_ours(client.odeint)
            assert is_ours(client.Block.solver)
            assert is_ours(client.SOLVERS["direct"])
        assert client.Block.solver is ORIGINALS[1]
    finally:
        gc.unfreeze()


def test_threads_that_install_at_once(client: ModuleType) -> None:
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait(60)
        install("torchdiffeq")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(map(is_ours, held(client).values()))
    install("torchdiffeq").undo()
    assert not any(map(is_ours, held(client).values()))


def test_torchsde() -> None:
    sde = pytest.importorskip("torchsde", reason="torchsde is not installed (pip install regnde[test])")
    original = (sde.sdeint,)

    class Noisy(sde.SDEIto):
        def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return -y

        def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return 0.1 * y

    with install("torchsde", "torchdiffeq") as installation, regnde.recording("none") as log:
        sde.sdeint(Noisy("diagonal"), torch.ones(4, 3), torch.tensor([0.0, 1.0]), dt=0.25, method="euler")
        with install("torchsde"):
            pass
        assert len(log.solutions) == 1
        assert is_ours(theirs.odeint)
        assert "torchsde.sdeint" in installation.replaced
    assert log.solutions[0].stats.nfe == 4
    assert (sde.sdeint,) == original


def test_only_known_packages() -> None:
    for names, given in (((), "no package."), (("torchode",), "no package 'torchode'")):
        with pytest.raises(ValueError, match=f"drop-ins for 'torchdiffeq' and 'torchsde', got {given}"):
            install(*names)
    assert theirs.odeint is ORIGINALS[0]


ABSENT = """
    import importlib.util
    import sys
    sys.modules["torchdiffeq"] = sys.modules["torchsde"] = None  # as if they were not installed
    import torch
    import regnde

    installation = regnde.install("torchdiffeq", "torchsde")
    print(installation.stand_ins, "Not installed" in str(installation))
    from torchdiffeq import odeint_adjoint as odeint
    import torchsde

    class SDE(torchsde.SDEIto):
        def __init__(self):
            super().__init__(noise_type="diagonal")
        def f(self, t, y):
            return -y
        def g(self, t, y):
            return 0.1 * y

    with regnde.recording() as log:
        odeint(lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0]))
        torchsde.sdeint(SDE(), torch.ones(2, 3), [0.0, 1.0], adaptive=True, rtol=0.1, atol=0.1, dt=0.1)
    print(len(log.solutions), importlib.util.find_spec("torchdiffeq").origin)
    try:
        torchsde.BrownianInterval
    except AttributeError as problem:
        print(problem)
    print(hasattr(sys.modules["torchdiffeq"], "odeint_dense"), regnde.install("torchsde").replaced)
    installation.undo()
    print("torchdiffeq" in sys.modules, "torchsde" in sys.modules)
"""


def test_a_package_that_is_not_installed_gets_a_stand_in() -> None:
    root = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root / "python")}
    code = textwrap.dedent(ABSENT)
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert out.stdout.splitlines() == [
        "('torchdiffeq', 'torchsde') True",
        "2 regnde",
        "torchsde is not installed, and regnde's stand-in for it has no 'BrownianInterval': pip install torchsde.",
        "True ()",
        "False False",
    ], out.stderr
