"""The documentation's code runs, and its table of methods is the code's."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import regnde
from printed import differences
from regnde._doctor import methods_table

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_the_table_of_methods_is_generated() -> None:
    page = (ROOT / "docs" / "engines.md").read_text()
    assert methods_table() in page, "docs/engines.md: paste what regnde._doctor.methods_table() returns"


BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```(?:text|{ .text .columns })\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
NOT_COMPARED = {
    "diagnose.md"
}  # the training of its ReLU field amplifies rounding: tests/test_diagnose.py holds the report


def blocks() -> list[tuple[str, str, str]]:
    """Page, program and, if the page shows it below, what the program prints."""
    return [
        (page.relative_to(ROOT).as_posix(), code, shown)
        for page in PAGES
        for code, shown in BLOCK.findall(page.read_text())
        if not code.startswith("--8<--")  # a file of examples/: tests/test_examples.py runs it
    ]


@pytest.mark.parametrize(("page", "code", "shown"), blocks(), ids=[f"{b[0]}-{i}" for i, b in enumerate(blocks())])
def test_python_blocks_run_and_print_what_the_page_shows(page: str, code: str, shown: str) -> None:
    """Blocks marked `python`; the ones with prompts (`pycon`) are doctests, which pytest collects."""
    done = subprocess.run(
        [sys.executable, "-c", f"import torch; torch.set_num_threads(1)\n{code}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PYTHONPATH": str(ROOT / "python"), "REGNDE_ENGINE": "torch", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{page}:\n{code}\n{done.stderr}"
    if shown and Path(page).name not in NOT_COMPARED:
        assert not (found := differences(shown, done.stdout)), f"{page}:\n" + "\n".join(found)


def cells(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading, by their first cell."""
    below = (ROOT / "docs" / page).read_text().split(f"\n{heading}\n")[1]
    table = re.findall(r"^\|.*\|$", below.split("\n\n", 1)[1].partition("\n#")[0], re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0]: row[1:] for row in rows[: next((i for i, r in enumerate(rows) if i and r[0] == "row"), None)]}


def test_the_short_table_has_the_numbers_of_the_demo() -> None:
    short, whole = cells("index.md", "## What the demo prints"), cells("results.md", "## The demo")
    assert list(short) == list(whole)
    columns = [whole["row"].index(name) for name in ("trained with", "predicts with", "accuracy", "cross entropy")]
    trained, predicts, accuracy, loss = columns
    for name in list(whole)[2:]:
        row = whole[name]
        wanted = [row[trained], row[trained + 1], row[predicts], row[predicts + 1], row[accuracy], row[loss]]
        assert short[name] == wanted, f"docs/index.md: the row of {name} is {wanted} in docs/results.md"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_page_says_what_the_demo_saves(page: str) -> None:
    table = cells("index.md", "## What the demo prints")
    _, trained, _, predicts, *_ = table["row"]
    assert (trained, predicts) == ("NFE in training", "NFE in prediction")
    before, after = table["vanilla"], table["budget"]
    wanted = f"{after[1]} evaluations instead of {before[1]} in training, and {after[3]} instead of {before[3]} in"
    assert wanted in " ".join((ROOT / page).read_text().split()), f"{page}: {wanted} prediction"


def templates() -> list[str]:
    """All texts in the package, with "…" in the place of what is filled in."""
    found = []
    for path in (ROOT / "python").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
            if all(isinstance(text, str) for text in texts):
                found.append("".join(texts))
    return [*found, *dir(regnde)]


NOT_OURS = ("mat1 and mat2", "'NoneType' object", "solve() got an unexpected", "element 0 of tensors")
"""How messages of Python and PyTorch begin; the page says whose they are."""


def test_every_message_of_the_troubleshooting_page_is_one_of_the_package() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\*\*`(.*)`\*\*$", page, re.MULTILINE)
    assert len(messages) > 35
    known = templates()
    for message in messages:
        parts = message.strip("… ").split("…")
        wanted = re.compile(".*".join(re.escape(part.strip()) for part in parts), re.DOTALL)
        assert message.startswith(NOT_OURS) or any(wanted.search(text) for text in known), message


def test_links_between_pages_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+\.(?:md|png))", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
