"""Every program of examples/ runs with --quick, and prints what its page shows."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHOWN = re.compile(r"^```text\n\$ ([^\n]*examples/(\w+)\.py[^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN_ELSEWHERE = {
    "budget_rules": "test_experiments.py",
    "latent_sde": "test_examples_sde.py",
    "paper": "test_experiments.py",
    "spiral_sde": "test_experiments.py",
}
NEEDS = {"lightning_module": "lightning"}
SHOWN_AS_TABLES = {"fixed_grid", "latent_sde", "sde_generator", "stiff"}


def pages() -> dict[str, tuple[str, str]]:
    """By program: its command, and what its page says that it prints."""
    found = {}
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for command, name, printed in SHOWN.findall(page.read_text()):
            found[name] = (command, printed)
    return found


def programs() -> list[str]:
    return sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def test_every_program_has_a_page_that_shows_what_it_prints() -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    for name in programs():
        assert f"examples/{name}.py" in text, f"no page names examples/{name}.py"
        assert name in {*pages(), *RUN_ELSEWHERE, *SHOWN_AS_TABLES}, f"no page shows {name}'s output"
    for included in re.findall(r'--8<-- "(.*?)"', text):
        assert (ROOT / included).exists()


@pytest.mark.parametrize("name", [name for name in programs() if name not in RUN_ELSEWHERE])
@pytest.mark.timeout(600)
def test_a_program_runs_quickly_and_prints_the_lines_of_its_page(name: str, tmp_path: Path) -> None:
    """Its page shows the whole run: the same lines, with other numbers."""
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"examples/{name}.py needs {NEEDS[name]}: pip install {NEEDS[name]}")
    path = os.pathsep.join([str(ROOT / "python"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = [sys.executable]
    if name == "ddp":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "examples" / f"{name}.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "REGNDE_ENGINE": "torch", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    if name in pages():
        shown, printed = (words(text) for text in (pages()[name][1], done.stdout))
        assert shown == printed, f"examples/{name}.py prints\n{done.stdout}"


def words(printed: str) -> list[list[str]]:
    """The words of each line: no numbers, no settings of solvers, nothing that a run decides."""
    plain = re.sub(r"\w+\([^()]*(\([^()]*\))?[^()]*\)", "", printed)
    lines = [re.findall(r"(?<![\w.])[^\W\d][^\W\d]+(?![\w.])", line) for line in plain.strip().splitlines()]
    return [[word for word in line if word not in METHODS] for line in lines]


METHODS = {"rk", "euler", "midpoint", "heun", "tsit", "bs", "dp", "vern"}
