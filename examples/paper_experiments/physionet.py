"""Irregular series: the raw files of Physionet 2012 by Kelly's recipe, or synthetic ones of the same shape.

Recipe (Kelly et al., NeurIPS 2020, after Rubanova et al., NeurIPS 2019): 41 variables less the four that describe
the patient, times rounded to the hour, values that meet averaged, (v - min) / max for each variable, 0 where
nothing was observed; the first 80 % of the stays are kept, and split 80:20 by the run's seed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

# fmt: off
VARIABLES = [
    "Weight", "Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol", "Creatinine", "DiasABP", "FiO2",
    "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "Mg", "MAP", "MechVent", "Na", "NIDiasABP", "NIMAP",
    "NISysABP", "PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TropI", "TropT", "Urine",
    "WBC",
]
# fmt: on
LEFT_OUT = {"RecordID", "Age", "Gender", "Height", "ICUType"}
HOURS = 48
NOISE = 0.06  # standard deviation of the synthetic series' noise
CYCLES, DAMPING = (0.1, 0.25), (0.5, 1.0)  # of the synthetic series' two oscillators, over the span
TIMES = tuple(hour / HOURS for hour in range(HOURS + 1))


class Series(NamedTuple):
    """Values and masks, each of shape (stays, 49, 37)."""

    values: Tensor
    mask: Tensor

    def split(self, seed: int) -> tuple[Series, Series]:
        """80 % to train and 20 % to test, drawn by the seed."""
        order = torch.randperm(len(self.values), generator=torch.Generator().manual_seed(seed))
        cut = len(order) * 4 // 5
        first, second = order[:cut], order[cut:]
        return Series(self.values[first], self.mask[first]), Series(self.values[second], self.mask[second])


def read_stay(path: Path) -> tuple[Tensor, Tensor]:
    """Values and mask, each of shape (49, 37), of one patient's file of lines `HH:MM,Parameter,Value`.

    Raises:
        ValueError: for a line of another form, an unknown parameter or a time beyond 48 hours.
    """
    sums, counts = (torch.zeros(HOURS + 1, len(VARIABLES), dtype=torch.float64) for _ in range(2))
    header, *lines = path.read_text().splitlines()
    if header.strip() != "Time,Parameter,Value":
        raise ValueError(f"{path} does not begin with 'Time,Parameter,Value'")
    for number, line in enumerate(lines, 2):
        try:
            clock, name, value = line.strip().split(",")
            hours, minutes = (int(part) for part in clock.split(":"))
            if name in LEFT_OUT or not name:
                continue
            place = round(hours + minutes / 60), VARIABLES.index(name)
            sums[place] += float(value)
            counts[place] += 1
        except (ValueError, IndexError) as problem:
            raise ValueError(f"{path}, line {number}: {line!r} is no 'HH:MM,Parameter,Value' of Physionet 2012") from (
                problem
            )
    return sums / counts.clamp(min=1), (counts > 0).double()


def load_physionet(folder: Path) -> Series:
    """The stays of all *.txt files below a folder (set-a and set-b), in the order of their paths.

    Raises:
        FileNotFoundError: if there are none.
    """
    paths = sorted(folder.rglob("*.txt"), key=lambda path: (path.parent.name, path.name))
    if not paths:
        raise FileNotFoundError(f"no *.txt files below {folder}: give the folder that holds set-a and set-b")
    stays = [read_stay(path) for path in paths]
    values, mask = (torch.stack(parts) for parts in zip(*stays, strict=True))
    seen = mask.bool()
    least = torch.where(seen, values, math.inf).amin((0, 1))
    most = torch.where(seen, values, -math.inf).amax((0, 1))
    least, most = (torch.where(torch.isfinite(x), x, 0.0) for x in (least, most))
    scaled = torch.where(seen, (values - least) / torch.where(most == 0, 1.0, most), 0.0)
    kept = max(1, len(paths) * 4 // 5)
    return Series(scaled[:kept], mask[:kept])


def synthetic(stays: int, seed: int = 0) -> Series:
    """Series of Physionet's shape: 37 mixtures of two slow damped oscillators, 10 to 20 % of the entries observed.

    The oscillators' rates are the data set's, their phases and amplitudes the stay's: a latent ODE can learn them.
    Values lie in [0, 1] but for their noise, which no model explains: it is of the size of what the papers' models
    leave unexplained on Physionet, mean squares of 0.0035.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    t = torch.tensor(TIMES, dtype=torch.float64)
    cycles, damping = torch.tensor(CYCLES).double(), torch.tensor(DAMPING).double()
    phase, amplitude = uniform(0, 2 * math.pi, stays, 1, 2), uniform(0.3, 1.0, stays, 1, 2)
    waves = amplitude * (-damping * t[:, None]).exp() * torch.cos(2 * math.pi * cycles * t[:, None] + phase)
    mixing = uniform(-1, 1, 2, len(VARIABLES))
    values = 0.5 + 0.5 * (waves @ mixing) / mixing.abs().sum(0)
    values = values + NOISE * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    mask = (torch.rand(values.shape, generator=generator) < uniform(0.1, 0.2, stays, 1, 1)).double()
    return Series(values * mask, mask)


def oscillators(t: Tensor, y: Tensor) -> Tensor:
    """The equation behind the synthetic series: states of shape (batch, 2 oscillators, 2), damped and turning."""
    damping, turning = y.new_tensor(DAMPING)[:, None], 2 * math.pi * y.new_tensor(CYCLES)[:, None]
    return -damping * y + turning * torch.stack((-y[..., 1], y[..., 0]), -1)
