"""Fixtures: which engines to test, seeds, and no leaks of torch's global state."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from regnde._engines import engines

collect_ignore = ["clients"]  # models that tests import: they need torchdiffeq and torchsde
# "auto" means torch here, whatever is prepared: what runs on Julia too takes the fixture `engine`.
os.environ.setdefault("REGNDE_ENGINE", "torch")
# The same examples in every run; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("repeat", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
torch.set_num_threads(1)  # the tests' tensors are small: more threads only get in each other's way


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=["torch", "julia"],
        help="run the tests of one engine only; what is missing is then a failure, not a skip",
    )

    parser.addoption("--device", help="torch's default device in all tests (cuda: they run on the GPU)")


def pytest_configure(config: pytest.Config) -> None:
    # Before the test modules are imported: their constants go there, too.
    if config.getoption("device") is not None:
        torch.set_default_device(config.getoption("device"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        asked = metafunc.config.getoption("engine")
        metafunc.parametrize("engine", [asked] if asked else ["torch", "julia"], indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """The engine under test by name; skips, or fails if it was asked for, where it can not run."""
    name: str = request.param
    known = engines()
    why = known[name].unavailable() if name in known else f"this version has no {name} engine"
    if why is not None:
        if request.config.getoption("engine") == name:
            pytest.fail(f"--engine={name}: {why}")
        pytest.skip(f"{name} engine: {why}")
    return name


@pytest.fixture
def julia(request: pytest.FixtureRequest) -> None:
    """Skips without Julia, or fails if Julia was asked for."""
    why = engines()["julia"].unavailable()
    if why is not None:
        if request.config.getoption("engine") == "julia":
            pytest.fail(f"--engine=julia: {why}")
        pytest.skip(f"julia engine: {why}")
    if request.config.getoption("engine") == "torch":
        pytest.skip("--engine=torch")


@pytest.fixture(autouse=True)
def _seed_and_defaults() -> Iterator[None]:
    """Every test starts from one seed and leaves torch's defaults as they were."""
    torch.manual_seed(0)
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    assert torch.get_default_dtype() == dtype, "the test changed torch's default dtype"
    assert torch.is_grad_enabled() == grad, "the test left gradients switched"
