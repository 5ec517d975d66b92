"""What products of float32 that a GPU rounds to 10 bits (TF32) cost a solver: one field, two settings."""

from __future__ import annotations

import torch

import regnde
from regnde import Solver
from regnde.nn import MLP

__all__ = ["rounded_products"]

Row = dict[str, object]
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def rounded_products() -> list[Row]:
    """Evaluations of 784-100-784 with a batch of 512 under both settings of `torch.set_float32_matmul_precision`."""
    if not torch.cuda.is_available():
        return [{"device": "cuda: left out, torch finds no CUDA device"}]
    torch.manual_seed(0)
    net = MLP([784, 100, 784]).cuda()
    with torch.no_grad():
        for w in net.weights:
            w.mul_(3.0)
    torch.manual_seed(1)
    y0 = 0.3 * torch.randn(512, 784, device="cuda")
    before = torch.get_float32_matmul_precision()
    rows: list[Row] = []
    for tolerance in TOLERANCES:
        row: Row = {"tolerance": f"{tolerance:.0e}"}
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            with torch.no_grad():
                sol = regnde.solve(net, y0, [0.0, 1.0], Solver(rtol=tolerance, atol=tolerance, engine="torch"))
            row[f"NFE, {precision}"] = sol.stats.nfe
        rows.append(row)
    torch.set_float32_matmul_precision(before)
    return rows
