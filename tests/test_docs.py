"""The documentation's code runs, and its table of methods is the code's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from regnde._doctor import methods_table

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_the_table_of_methods_is_generated() -> None:
    page = (ROOT / "docs" / "engines.md").read_text()
    assert methods_table() in page, "docs/engines.md: paste what regnde._doctor.methods_table() returns"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path) -> None:
    """Blocks marked `python`; the ones with prompts (`pycon`) are doctests, which pytest collects."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        code = f"import torch; torch.set_num_threads(1)\n{block}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={"PYTHONPATH": str(ROOT / "python"), "REGNDE_ENGINE": "torch", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, f"{page.name}:\n{block}\n{done.stderr}"


def test_links_between_pages_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+\.(?:md|png))", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
