"""Fields with complex numbers in them: Fourier transforms inside of real fields, and complex states."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fields import Field, Zoo, state

__all__ = ["COMPLEX_FIELDS", "COMPLEX_STATES", "FourierLayer", "schroedinger"]

COMPLEX = torch.complex128


def diffusion(t: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """y_xx + y on a circle."""
    size = y.shape[dim]
    waves = torch.arange(size // 2 + 1, dtype=y.dtype)
    shape = [-1 if d == dim % y.dim() else 1 for d in range(y.dim())]
    return torch.fft.irfft((1 - waves**2).reshape(shape) * torch.fft.rfft(y, dim=dim), n=size, dim=dim)


def burgers(t: Tensor, y: Tensor) -> Tensor:
    """-y y_x + 0.1 y_xx, the derivatives by complex transforms of real states."""
    waves = 1j * torch.fft.fftfreq(y.shape[-1], 1 / y.shape[-1], dtype=y.dtype)
    spectrum = torch.fft.fft(y)
    return 0.1 * torch.fft.ifft(waves**2 * spectrum).real - y * torch.fft.ifft(waves * spectrum).real


def all_norms(t: Tensor, y: Tensor) -> Tensor:
    total = y
    for norm in ("backward", "ortho", "forward"):
        half = torch.fft.rfft(y, norm=norm) * torch.exp(1j * t)
        total = total + torch.fft.irfft(half, n=y.shape[-1], norm=norm) + torch.fft.hfft(half, n=y.shape[-1], norm=norm)
        total = total + (torch.fft.ifft(torch.fft.fft(y, norm=norm) * 1j, norm="ortho") * (1 - 2j)).real
        total = total + torch.fft.ihfft(y, norm=norm).abs().sum(-1, keepdim=True)
    return total


def several_dimensions(t: Tensor, y: Tensor) -> Tensor:
    plane = torch.fft.irfft2(torch.fft.rfft2(y) * (0.5 - 0.25j), s=y.shape[-2:])
    whole = torch.fft.ifftn(torch.fft.fftn(y, dim=(1, 2, 3)) * 1j, dim=(1, 3)).abs()
    first = torch.fft.irfftn(torch.fft.rfftn(y, dim=(3, 1)), s=(y.shape[3], y.shape[1]), dim=(3, 1))
    return plane + 0.01 * whole + first * t + torch.fft.fftshift(y, dim=-1)


def cut_and_padded(t: Tensor, y: Tensor) -> Tensor:
    """Transforms of other lengths than the signal's."""
    longer = torch.fft.irfft(torch.fft.rfft(y, n=12), n=12)[..., : y.shape[-1]]
    return longer + torch.fft.irfft(torch.fft.rfft(y)[..., :2], n=y.shape[-1]) * torch.fft.rfft(y, n=3).real.sum()


def over_the_samples(t: Tensor, y: Tensor) -> Tensor:
    return torch.fft.ifft(torch.fft.fft(y, dim=0) * (1 + 1j), dim=0).real + y


class FourierLayer(nn.Module):
    """A layer of a Fourier neural operator, in one or two dimensions: channels are mixed mode by mode."""

    def __init__(self, channels: int, modes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        blocks = 1 if len(modes) == 1 else 2  # of positive and negative waves along the first dimension
        weights = torch.randn((blocks, channels, channels, *modes), dtype=dtype.to_complex()) / channels
        self.weights, self.modes = nn.Parameter(weights), modes
        self.pointwise = nn.Linear(channels, channels, dtype=dtype)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope of y, shape (batch, channels, *sizes)."""
        along, sizes = tuple(range(2, y.dim())), y.shape[2:]
        spectrum = torch.fft.rfftn(y, dim=along)
        mixed = torch.zeros_like(spectrum)
        last = self.modes[-1]
        if len(self.modes) == 1:
            mixed[..., :last] = torch.einsum("bim,iom->bom", spectrum[..., :last], self.weights[0])
        else:
            for block, rows in enumerate((slice(None, self.modes[0]), slice(-self.modes[0], None))):
                part = spectrum[:, :, rows, :last]
                mixed[:, :, rows, :last] = torch.einsum("bixy,ioxy->boxy", part, self.weights[block])
        spread = torch.fft.irfftn(mixed, s=sizes, dim=along)
        return F.gelu(spread + self.pointwise(y.movedim(1, -1)).movedim(-1, 1)) * torch.cos(t) - y


def parts(t: Tensor, y: Tensor) -> Tensor:
    z = torch.complex(y, t * y.sin())
    pairs = torch.view_as_complex(torch.stack([y, 2 * y.flip(-1)], -1))
    turned = torch.polar(y.abs() + 0.1, y) * z.conj() * pairs
    written = torch.view_as_real(turned)
    return z.abs() + turned.angle() + z.real * turned.imag - written.sum(-1) + (z * z.conj()).real + pairs.imag


def functions_of_complex(t: Tensor, y: Tensor) -> Tensor:
    z = torch.complex(y, 0.3 + y.flip(-1) ** 2)
    a = z.exp() + z.log() + z.sqrt() + z.sin() * z.cos() + z.tanh() + z.sinh() - z.cosh() + z.rsqrt()
    b = z**2 + z**-1 + z**0.5 + z**1.7 + z ** (1 + 0.5j) + 2.0**z + z.pow(z) + z.reciprocal() + 1j / z - z.sigmoid()
    c = torch.where(y > 0, z, 0.5) + torch.where(y > 0.5, 0, z) + z.sgn() + z.square() + torch.tan(z) * 0.01
    return (a + b * t).real + (c * (1 - 2j)).imag + (z / (y + 2j)).real + z.to(COMPLEX).abs().log()


def products() -> tuple[Field, Tensor]:
    w, bias = state(4, 4, dtype=COMPLEX).requires_grad_(), state(4, dtype=COMPLEX).requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        z = torch.complex(y, y.cos())
        layer = F.linear(z, w, bias) + z @ w.mH + z.conj() @ w + (z @ w.mT.conj()).conj()
        each = torch.einsum("bi,bi->b", z @ w, z.conj())[:, None]
        batched = torch.bmm(z[:, :, None], z[:, None].conj()) @ w
        return (layer + each).real * t + batched.sum(1).imag + torch.vdot(bias, z[0]).real + (w @ z[0]).abs()

    return field, state(3, 4)


def moved() -> tuple[Field, Tensor]:
    """Views, regions and lists of complex entries."""
    order = torch.tensor([2, 0, 1, 0])

    def field(t: Tensor, y: Tensor) -> Tensor:
        z = torch.complex(y, -y * t)
        joined = torch.cat([z[:, 1:], z[:, :1].conj()], 1) + z.roll(1, -1) + z.flip(-1) * z[:, order]
        joined = joined + torch.zeros_like(z).index_add(1, order, z) + z.cumsum(-1) + z.mean(-1, keepdim=True)
        padded = F.pad(torch.view_as_real(z), (0, 0, 1, 1))[:, 1:-1]
        kept = z.clone()
        kept[:, 0] = z[:, 1] * 1j
        return (joined * kept).real + torch.view_as_complex(padded.contiguous()).imag + z.sum().abs()

    return field, state(3, 4)


def squares(t: Tensor, y: Tensor) -> Tensor:
    """The power spectrum's part above the lowest wave."""
    return y / (1 + torch.fft.rfft(y).abs()[..., 1:].square().sum(-1, keepdim=True)) + torch.fft.rfft(y).abs().amax()


def schroedinger(t: Tensor, psi: Tensor) -> Tensor:
    """-i (H psi + |psi|^2 psi) with H = -d_xx / 2 + x^2 / 2, the derivative by a transform."""
    size = psi.shape[-1]
    waves = torch.fft.fftfreq(size, 1 / size, dtype=psi.real.dtype)
    place = torch.linspace(-1, 1, size, dtype=psi.real.dtype)
    kinetic = torch.fft.ifft(0.5 * waves**2 * torch.fft.fft(psi))
    return -1j * (kinetic + (0.5 * place**2 + psi.abs() ** 2) * psi)


def norms(t: Tensor, z: Tensor) -> Tensor:
    """Norms of complex numbers, which are real: the squares of their moduli are added, not their own."""
    return 1j * z * z.norm() + z / (1 + sum(torch.linalg.vector_norm(z, p, -1, keepdim=True) for p in (0, 1, 2, 3)))


def spread(t: Tensor, z: Tensor) -> Tensor:
    """The variance of complex numbers, which is real. torch has no derivative of it, so they come from the time."""
    turned = torch.exp(1j * t * torch.arange(3, dtype=z.real.dtype))
    return z * turned.std() + z.conj() * turned.var()


def oscillator(t: Tensor, z: Tensor) -> Tensor:
    return (-0.1 + 2j) * z


def spins() -> tuple[Field, Tensor]:
    """-i H psi with a trained Hermitian H, and a drive in the time."""
    raw = state(4, 4, dtype=COMPLEX).requires_grad_()
    drive = state(4, 4).requires_grad_()

    def field(t: Tensor, psi: Tensor) -> Tensor:
        h = raw + raw.mH + torch.cos(3 * t) * (drive + drive.mT)
        return -1j * torch.einsum("ij,...j->...i", h, psi)

    return field, state(3, 4, dtype=COMPLEX)


def matrices() -> tuple[Field, Tensor]:
    """Determinants, inverses, solutions and factors of complex matrices."""
    a = (state(3, 3, dtype=COMPLEX) + 2 * torch.eye(3)).detach().requires_grad_()

    def field(t: Tensor, z: Tensor) -> Tensor:
        sign, size = torch.linalg.slogdet(a + 1j * a.mT)
        lower = torch.linalg.cholesky(a @ a.mH + torch.eye(3))
        solved = torch.linalg.solve(a, z.mT).mT + torch.linalg.solve_triangular(lower, z.mT, upper=False).mT
        return z * torch.linalg.det(a) + z * sign * size + z @ torch.linalg.inv(a) + solved

    return field, state(2, 3, dtype=COMPLEX)


def density() -> tuple[Field, Tensor]:
    """Lindblad's equation of two levels: -i [H, rho] + L rho L* - {L* L, rho} / 2."""
    h, jump = state(2, 2, dtype=COMPLEX).requires_grad_(), torch.tensor([[0, 1], [0, 0]], dtype=COMPLEX)

    def field(t: Tensor, rho: Tensor) -> Tensor:
        hermitian, loss = h + h.mH, jump.mH @ jump
        back = jump @ rho @ jump.mH - 0.5 * (loss @ rho + rho @ loss)
        return -1j * (hermitian @ rho - rho @ hermitian) + back

    return field, state(3, 2, 2, dtype=COMPLEX)


def real_network() -> tuple[Field, Tensor]:
    """A network of the real and imaginary parts: not holomorphic."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    return lambda t, z: torch.view_as_complex(net(torch.view_as_real(z))) * t - z.conj(), state(3, 2, dtype=COMPLEX)


def complex_network() -> tuple[Field, Tensor]:
    """A complex network with an activation of the modulus."""
    first, second = (nn.Linear(a, b, dtype=COMPLEX) for a, b in ((3, 5), (5, 3)))

    def field(t: Tensor, z: Tensor) -> Tensor:
        hidden = first(z)
        return second(hidden * torch.sigmoid(hidden.abs())) - z * z.real.sum(-1, keepdim=True)

    return field, state(4, 3, dtype=COMPLEX)


COMPLEX_FIELDS = (
    *(Zoo(f"diffusion {n}", lambda n=n: (diffusion, state(3, n))) for n in (7, 8)),
    Zoo("diffusion of a vector", lambda: (diffusion, state(9)), batched=False),
    Zoo("diffusion along a middle dimension", lambda: (partial(diffusion, dim=1), state(3, 5, 2))),
    *(Zoo(f"burgers {n}", lambda n=n: (burgers, state(3, n))) for n in (7, 8)),
    *(Zoo(f"all norms {n}", lambda n=n: (all_norms, state(3, n))) for n in (5, 6)),
    Zoo("several dimensions", lambda: (several_dimensions, state(2, 2, 5, 4))),
    Zoo("cut and padded", lambda: (cut_and_padded, state(3, 8))),
    Zoo("over the samples", lambda: (over_the_samples, state(4, 3))),
    Zoo("fourier layer 1d", lambda: (FourierLayer(3, (3,)), state(2, 3, 8))),
    Zoo("fourier layer 1d, odd", lambda: (FourierLayer(2, (4,)), state(2, 2, 7))),
    Zoo("fourier layer 2d", lambda: (FourierLayer(2, (2, 3)), state(2, 2, 6, 8))),
    Zoo("parts", lambda: (parts, state(3, 4))),
    Zoo("functions of complex", lambda: (functions_of_complex, state(3, 4))),
    Zoo("products", products),
    Zoo("moved", moved),
    Zoo("squares", lambda: (squares, state(3, 6))),
)
"""Real states."""

COMPLEX_STATES = (
    Zoo("schroedinger", lambda: (schroedinger, state(2, 8, dtype=COMPLEX))),
    Zoo("schroedinger, odd", lambda: (schroedinger, state(7, dtype=COMPLEX)), batched=False),
    Zoo("oscillator", lambda: (oscillator, state(3, dtype=COMPLEX)), batched=False),
    Zoo("complex number", lambda: (oscillator, state(dtype=COMPLEX)), batched=False),
    Zoo("norms", lambda: (norms, state(3, 4, dtype=COMPLEX))),
    Zoo("spread", lambda: (spread, state(3, 2, dtype=COMPLEX))),
    Zoo("spins", spins),
    Zoo("matrices", matrices),
    Zoo("density", density),
    Zoo("real network", real_network),
    Zoo("complex network", complex_network),
)
