"""CIFAR10 by paper B's convolutional neural ODEs: one scale (B 3.10 in the notes of the papers), two (B 3.11).

The small scale is MNIST at 14 x 14 with narrow layers. The states are rows, as the comparators want them. All batch
normalisation inside a field takes the statistics of the batch: running ones would be changed by every evaluation of
the field, those of rejected steps too.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from paper_experiments.base import Evaluation, Experiment, Options, Place, Problem, Settings, scores
from paper_experiments.data import Images, load_cifar, load_mnist
from paper_experiments.methods import Method, Weights
from regnde import Solution, steer

SPAN = (0.0, 1.0)
STEER_WIDTH = 0.5
SMALL_SIDE = 14
DROPOUT = 0.2  # of whole channels, one draw a solve


class Norm(nn.BatchNorm2d):
    """Batch normalisation by the batch's own statistics, in training and after it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)


def convolution(channels: int, out: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """3 x 3, keeping the size but for the stride."""
    return nn.Conv2d(channels, out, 3, stride, padding=1, bias=bias)


class TimedField(nn.Module):
    """Three convolutions of the state, each with the time as one more channel; the first two normalised, with GELU.

    Args:
        channels: of the state.
        hidden: of the layers inside.
        side: of the image.
    """

    def __init__(self, channels: int, hidden: int, side: int) -> None:
        super().__init__()
        self.shape = channels, side, side
        sizes = [channels, hidden, hidden, channels]
        self.layers = nn.ModuleList(convolution(a + 1, b) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(Norm(hidden) for _ in sizes[1:-1])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope, as rows."""
        x = y.unflatten(1, self.shape)
        for i, layer in enumerate(self.layers):
            clock = t.to(x.dtype).expand(len(x), 1, *self.shape[1:])
            x = layer(torch.cat([x, clock], 1))
            if i < len(self.norms):
                x = functional.gelu(self.norms[i](x))
        return x.flatten(1)


class Block(nn.Module):
    """A residual block: two convolutions, wider between, with normalisation, GELU and a mask of dropped channels."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.first, self.second = convolution(channels, wide), convolution(wide, channels)
        self.norms = nn.ModuleList([Norm(wide), Norm(channels), Norm(channels)])

    def forward(self, z: Tensor, injected: Tensor | None, mask: Tensor | None) -> Tensor:
        """The block's value; `injected` is added inside, as in multi-scale deep equilibrium models."""
        x = functional.gelu(self.norms[0](self.first(z)))
        x = self.second(x)
        x = self.norms[1](x if mask is None else mask * x)
        x = x if injected is None else x + injected
        return self.norms[2](functional.gelu(x) + z)


class TwoScales(nn.Module):
    """dz/dt = g(z, x) - z on two scales: a block on each, then a sum over both, the other one resampled.

    Args:
        channels: of the finer and the coarser scale.
        expansion: of the blocks.
        side: of the image; the coarser scale has half of it, rounded up.
    """

    def __init__(self, channels: tuple[int, int], expansion: int, side: int) -> None:
        super().__init__()
        fine, coarse = channels
        half = -(-side // 2)
        self.shapes = ((fine, side, side), (coarse, half, half))
        self.blocks = nn.ModuleList(Block(count, expansion) for count in channels)
        self.down, self.down_norm = convolution(fine, coarse, stride=2), Norm(coarse)
        self.up, self.up_norm = nn.Conv2d(coarse, fine, 1, bias=False), Norm(fine)

    def scales(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The two images in a state's rows."""
        (c, h, w), shape = self.shapes
        fine = c * h * w
        return y[:, :fine].unflatten(1, self.shapes[0]), y[:, fine:].unflatten(1, shape)

    def start(self, x: Tensor) -> Tensor:
        """The state at the start: the features of the input, and zeros."""
        c, h, w = self.shapes[1]
        return torch.cat([x.flatten(1), x.new_zeros(len(x), c * h * w)], 1)

    def masks(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Channels to drop, drawn once for a solve; none outside training."""
        if not self.training:
            return None, None
        fine, coarse = (
            functional.dropout(x.new_ones(len(x), channels, 1, 1), DROPOUT) for channels, _, _ in self.shapes
        )
        return fine, coarse

    def forward(self, y: Tensor, x: Tensor, masks: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """The slope of a state's rows, with the input's features x."""
        fine, coarse = self.scales(y)
        a, b = self.blocks[0](fine, x, masks[0]), self.blocks[1](coarse, None, masks[1])
        upper = functional.interpolate(self.up_norm(self.up(b)), size=a.shape[2:], mode="nearest")
        lower = self.down_norm(self.down(a))
        return torch.cat([(a + upper - fine).flatten(1), (b + lower - coarse).flatten(1)], 1)


class ImageODE(Problem):
    """A classifier of images around one solve.

    Args:
        settings: sizes and schedule.
        method: the row.
        place: device, precision, engine.
        data: images of shape (N, channels, side, side).
    """

    def __init__(self, settings: Settings, method: Method, place: Place, data: Images) -> None:
        super().__init__(settings, method, place)
        self.data, self.items = data, len(data.train_x)

    def times(self) -> tuple[float, ...]:
        """The span, its end drawn anew where the row is STEER's."""
        return tuple(steer(SPAN, STEER_WIDTH)) if self.method.steer and self.training else SPAN

    @abstractmethod
    def logits(self, x: Tensor) -> tuple[Tensor, Solution]:
        """Of each class, and the solve."""

    def loss(self, index: Tensor, iteration: int, epoch: float) -> tuple[Tensor, Solution]:
        """Cross-entropy."""
        logits, solution = self.logits(self.data.train_x[index])
        return self.penalised(functional.cross_entropy(logits, self.data.train_y[index])), solution

    def evaluate(self) -> Evaluation:
        """Accuracy and cross-entropy on all test images, in batches as in training; NFE and seconds of the first."""
        parts = self.data.test_x.split(self.settings.batch)
        logits = torch.cat([self.logits(x)[0] for x in parts])
        return Evaluation(*scores(logits, self.data.test_y), *self.timed(lambda _: self.logits(parts[0])[1]))


@dataclass(frozen=True)
class Sizes:
    """Layers of both models.

    Attributes:
        lifted: channels that a convolution appends to the image.
        hidden: channels inside the field of one scale.
        channels: of the two scales.
        expansion: of the blocks.
        head: channels of the two scales' heads.
        final: channels before the last layer.
    """

    lifted: int
    hidden: int
    channels: tuple[int, int]
    expansion: int
    head: tuple[int, int]
    final: int


SIZES = {
    "small": Sizes(lifted=3, hidden=8, channels=(6, 6), expansion=2, head=(4, 8), final=32),
    "paper": Sizes(lifted=5, hidden=64, channels=(24, 24), expansion=5, head=(8, 16), final=200),
}


class Standard(ImageODE):
    """One scale: a convolution appends channels to the image, another makes one of the end's, which a layer reads."""

    def __init__(self, settings: Settings, method: Method, place: Place, data: Images, sizes: Sizes) -> None:
        super().__init__(settings, method, place, data)
        colours, side = data.train_x.shape[1:3]
        channels = colours + sizes.lifted
        self.lift, self.norm = convolution(colours, sizes.lifted, bias=True), nn.BatchNorm2d(channels)
        self.field = TimedField(channels, sizes.hidden, side)
        self.reduce, self.readout = convolution(channels, 1, bias=True), nn.Linear(side * side, 10)

    def logits(self, x: Tensor) -> tuple[Tensor, Solution]:
        """Of each class, and the solve."""
        start = self.norm(torch.cat([x, self.lift(x)], 1))
        solution = self.integrate(self.field, start.flatten(1), self.times())
        end = solution.y1.unflatten(1, self.field.shape)
        return self.readout(functional.gelu(self.reduce(end)).flatten(1)), solution


class MultiScale(ImageODE):
    """Two scales, into which the features of the image go at all times; a head on each makes the logits."""

    def __init__(self, settings: Settings, method: Method, place: Place, data: Images, sizes: Sizes) -> None:
        super().__init__(settings, method, place, data)
        colours, side = data.train_x.shape[1:3]
        fine, coarse = sizes.channels
        self.features = nn.Sequential(convolution(colours, fine), nn.BatchNorm2d(fine), nn.GELU())
        self.field = TwoScales(sizes.channels, sizes.expansion, side)
        a, b = sizes.head
        self.heads = nn.ModuleList(
            nn.Sequential(convolution(count, out), nn.BatchNorm2d(out), nn.GELU())
            for count, out in ((fine, a), (coarse, b))
        )
        self.join = convolution(a, b, stride=2)
        self.final = nn.Sequential(nn.Conv2d(b, sizes.final, 1), nn.BatchNorm2d(sizes.final), nn.GELU())
        self.readout = nn.Linear(sizes.final, 10)

    def logits(self, x: Tensor) -> tuple[Tensor, Solution]:
        """Of each class, and the solve."""
        features = self.features(x)
        masks = self.field.masks(features)
        solution = self.integrate(lambda t, y: self.field(y, features, masks), self.field.start(features), self.times())
        fine, coarse = self.field.scales(solution.y1)
        joined = self.join(self.heads[0](fine)) + self.heads[1](coarse)
        return self.readout(self.final(joined).mean((2, 3))), solution


def _images(options: Options, place: Place) -> Images:
    if options.scale == "small":
        images = load_mnist(options.mnist, SMALL_SIDE)
        shape = (1, SMALL_SIDE, SMALL_SIDE)
        images = images._replace(
            train_x=images.train_x.unflatten(1, shape) - 0.5, test_x=images.test_x.unflatten(1, shape) - 0.5
        )
    else:
        images = load_cifar(options.cifar)
    x = (part.to(place.device, place.dtype) for part in (images.train_x, images.test_x))
    y = (part.to(place.device) for part in (images.train_y, images.test_y))
    return Images(*(part for pair in zip(x, y, strict=True) for part in pair))


def _standard_settings(options: Options) -> Settings:
    if options.scale == "small":
        weights = Weights(error=(300.0, 100.0), stiffness=(0.1, 0.1), both=(300.0, 100.0), local=(300.0, 100.0))
        return Settings(
            iterations=300,
            batch=50,
            tolerance=1e-4,
            learning_rate=1e-2,
            cosine=True,
            dtype="float32",
            timing=5,
            weights=weights,
        )
    weights = Weights(error=(2.5, 2.5), stiffness=(0.1, 0.1), both=(2.5, 2.5), local=(2.5, 2.5))
    return Settings(
        iterations=31_250,
        batch=32,
        tolerance=1e-4,
        learning_rate=3e-3,
        cosine=True,  # to 0; paper B's ends at 1e-4
        dtype="float32",
        official_local=True,
        weights=weights,
    )


def _multi_scale_settings(options: Options) -> Settings:
    small = options.scale == "small"
    weights = Weights(error=(0.1, 5.0), stiffness=(0.1, 0.1), both=(0.1, 5.0), local=(0.1, 5.0))
    return Settings(
        iterations=150 if small else 20_000,
        batch=50 if small else 128,
        tolerance=0.05,  # of tsit5: paper B solves by VCAB3 and takes the local step by tsit5
        learning_rate=1e-2 if small else 1e-3,
        cosine=True,  # to 0; paper B's ends at a tenth
        dtype="float32",
        official_local=not small,
        timing=5 if small else 11,
        weights=weights,
    )


def _build_standard(settings: Settings, method: Method, place: Place, options: Options) -> Standard:
    return Standard(settings, method, place, _images(options, place), SIZES[options.scale])


def _build_multi_scale(settings: Settings, method: Method, place: Place, options: Options) -> MultiScale:
    return MultiScale(settings, method, place, _images(options, place), SIZES[options.scale])


STANDARD = Experiment("accuracy", False, _standard_settings, _build_standard)
MULTI_SCALE = Experiment("accuracy", False, _multi_scale_settings, _build_multi_scale)
