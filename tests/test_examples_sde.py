"""The latent SDE's example runs, torchsde's own loop included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(600)
def test_latent_sde_quick() -> None:
    pytest.importorskip("torchsde", reason="torchsde is not installed (pip install regnde[test])")
    command = [sys.executable, str(ROOT / "examples" / "latent_sde.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert [row[0].split(",")[0] for row in rows] == ["torchsde", *["regnde"] * 4]
    for row in rows:
        assert float(row[2]) < float(row[3])  # the loss fell in six iterations
    assert rows[0][4] == rows[1][4] == "20"  # ten steps
