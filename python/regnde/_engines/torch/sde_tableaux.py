"""Coefficients of the stochastic Runge-Kutta methods: a method is a tableau and nothing else.

Sources, retyped:
  sosri, sosri2, sosra  C. Rackauckas, Q. Nie, arXiv 1804.04344, the stability-optimised methods.
  sriw1  A. Roessler, SIAM J. Numer. Anal. 48 (2010) 922-952, the method SRIW1.
  em     G. Maruyama, Rend. Circ. Mat. Palermo 4 (1955) 48-90.
Step control, delta and stability sizes are StochasticDiffEq.jl's (v7).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from regnde._engines.torch.control import Controller

__all__ = ["SDE_TABLEAUX", "StochasticTableau"]

Row = tuple[float, ...]

QMAX = 9 / 8  # an error estimate that holds noise grows a step only slowly


@dataclass(frozen=True)
class StochasticTableau:
    """A stochastic Runge-Kutta method for diagonal Ito noise, in Roessler's form.

    With J_1 = I_(1,1)/sqrt(h), J_2 = I_(1,0)/h and J_3 = I_(1,1,1)/h (`sde_step.py`),

        k_i = f(t + c0_i h, y + h sum_j a0_ij k_j + J_2 sum_j b0_ij g_j)
        g_i = g(t + c1_i h, y + h sum_j a1_ij k_j + sqrt(h) sum_j b1_ij g_j)
        y1  = y + h sum alpha_i k_i + sum (beta1_i dW + beta2_i J_1 + beta3_i J_2 + beta4_i J_3) g_i.

    Attributes:
        name: the name users give.
        order: strong order, which the step control uses.
        a0, b0, c0: rows and times of the drift's stages; fewer than the diffusion's if the last ones are unused.
        a1, b1, c1: rows and times of the diffusion's stages; no rows where it is evaluated at the drift's states.
        alpha, beta1, beta2, beta3, beta4: weights of the new state.
        delta: weight of the drift's part in the error estimate; None for a fixed-step method.
        additive: only for a diffusion that does not depend on the state.
        stability_size: extent of the stability region along the negative real axis.
        stiffness_pair: whether the drift's last two stages both lie at t + h, so that their
            quotient estimates the stiffness.
        controller: the step size control, None for a fixed-step method.
    """

    name: str
    order: float
    a0: tuple[Row, ...]
    b0: tuple[Row, ...]
    c0: Row
    a1: tuple[Row, ...]
    b1: tuple[Row, ...]
    c1: Row
    alpha: Row
    beta1: Row
    beta2: Row
    beta3: Row
    beta4: Row
    delta: float | None = None
    additive: bool = False
    stability_size: float | None = None
    stiffness_pair: bool = False
    controller: Controller | None = None

    @property
    def estimates_error(self) -> bool:
        """Whether the method has an error estimate."""
        return self.delta is not None

    @property
    def noise_weights(self) -> tuple[Row, ...]:
        """Weights (rows: stages for y1, then stages for the error) of dW, J_1, J_2, J_3 (columns)."""
        update = zip(self.beta1, self.beta2, self.beta3, self.beta4, strict=True)
        error = ((0.0, 0.0, b3, b4) for b3, b4 in zip(self.beta3, self.beta4, strict=True))
        return tuple(chain(update, error))


def _sums(rows: tuple[Row, ...]) -> Row:
    return tuple(sum(row) for row in rows)


_SOSRI_A0: tuple[Row, ...] = (
    (),
    (-0.04199224421316468,),
    (2.842612915017106, -2.0527723684000727),
    (4.338237071435815, -2.8895936137439793, 2.3017575594644466),
)
_SOSRI_A1: tuple[Row, ...] = (
    (),
    (0.26204282091330466,),
    (0.20903646383505375, -0.1502377115150361),
    (0.05836595312746999, 0.6149440396332373, 0.08535117634046772),
)
_SOSRI = StochasticTableau(
    name="sosri",
    order=1.5,
    a0=_SOSRI_A0,
    b0=(
        (),
        (-0.21641093549612528,),
        (1.5336352863679572, 0.26066223492647056),
        (-1.0536037558179159, 1.7015284721089472, -0.20725685784180017),
    ),
    c0=_sums(_SOSRI_A0),
    a1=_SOSRI_A1,
    b1=(
        (),
        (-0.5119011827621657,),
        (2.67767339866713, -4.9395031322250995),
        (0.15580956238299215, 3.2361551006624674, -1.4223118283355949),
    ),
    c1=_sums(_SOSRI_A1),
    alpha=(1.140099274172029, -0.6401334255743456, 0.4736296532772559, 0.026404498125060714),
    beta1=(-1.8453464565104432, 2.688764531100726, -0.2523866501071323, 0.40896857551684956),
    beta2=(0.4969658141589478, -0.5771202869753592, -0.12919702470322217, 0.2093514975196336),
    beta3=(2.8453464565104425, -2.688764531100725, 0.2523866501071322, -0.40896857551684945),
    beta4=(0.11522663875443433, -0.57877086147738, 0.2857851028163886, 0.17775911990655704),
    delta=1.0,
    controller=Controller.for_order(1.5, qmax=QMAX),
)

_SOSRI2 = StochasticTableau(
    name="sosri2",
    order=1.5,
    a0=(
        (),
        (0.13804532298278663,),
        (0.5818361298250374, 0.4181638701749618),
        (0.4670018408674211, 0.8046204792187386, -0.27162232008616016),
    ),
    b0=(
        (),
        (0.08852381537667678,),
        (1.0317752458971061, 0.4563552922077882),
        (1.73078280444124, -0.46089678470929774, -0.9637509618944188),
    ),
    c0=(0.0, 0.13804532298278663, 1.0, 1.0),
    a1=(
        (),
        (0.45605532163856893,),
        (0.7555807846451692, 0.24441921535482677),
        (0.6981181143266059, 0.3453277086024727, -0.04344582292908241),
    ),
    b1=(
        (),
        (0.6753186815412179,),
        (-0.07452812525785148, -0.49783736486149366),
        (-0.5591906709928903, 0.022696571806569924, -0.8984927888368557),
    ),
    c1=(0.0, 0.45605532163856893, 1.0, 1.0),
    alpha=(-0.15036858140642623, 0.7545275856696072, 0.686995463807979, -0.2911544680711602),
    beta1=(-0.45315689727309133, 0.8330937231303951, 0.3792843195533544, 0.24077885458934192),
    beta2=(-0.4994383733810986, 0.9181786186154077, -0.25613778661003145, -0.16260245862427797),
    beta3=(1.4531568972730915, -0.8330937231303933, -0.3792843195533583, -0.24077885458934023),
    beta4=(-0.4976090683622265, 0.9148155835648892, -1.4102107084476505, 0.9930041932449877),
    delta=1.0,
    stability_size=10.6,
    stiffness_pair=True,
    controller=Controller.for_order(1.5, qmax=QMAX),
)

_SRIW1 = StochasticTableau(
    name="sriw1",
    order=1.5,
    a0=((), (3 / 4,)),
    b0=((), (3 / 2,)),
    c0=(0.0, 3 / 4),
    a1=((), (1 / 4,), (1.0,), (1 / 4,)),
    b1=((), (1 / 2,), (-1.0,), (-5.0, 3.0, 1 / 2)),
    c1=(0.0, 1 / 4, 1.0, 1 / 4),
    alpha=(1 / 3, 2 / 3),
    beta1=(-1.0, 4 / 3, 2 / 3, 0.0),
    beta2=(-1.0, 4 / 3, -1 / 3, 0.0),
    beta3=(2.0, -4 / 3, -2 / 3, 0.0),
    beta4=(-2.0, 5 / 3, -2 / 3, 1.0),
    delta=1 / 6,
    controller=Controller.for_order(1.5, qmax=QMAX),
)

_SOSRA = StochasticTableau(
    name="sosra",
    order=2.0,
    a0=((), (0.6923962376159507,), (-3.1609142252828395, 4.1609142252828395)),
    b0=((), (1.3371632704399763,), (1.442371048468624, 1.8632741501139225)),
    c0=(0.0, 0.6923962376159507, 1.0),
    a1=(),
    b1=(),
    c1=(0.0, 0.041248171110700504, 1.0),
    alpha=(0.2889874966892885, 0.6859880440839937, 0.025024459226717772),
    beta1=(-16.792534242221663, 17.514995785380226, 0.27753845684143835),
    beta2=(0.0, 0.0, 0.0),
    beta3=(0.4237535769069274, 0.6010381474428539, -1.0247917243497813),
    beta4=(0.0, 0.0, 0.0),
    delta=1.0,
    additive=True,
    controller=Controller.for_order(2.0, qmax=QMAX),
)

_EM = StochasticTableau(
    name="em",
    order=0.5,
    a0=((),),
    b0=((),),
    c0=(0.0,),
    a1=((),),
    b1=((),),
    c1=(0.0,),
    alpha=(1.0,),
    beta1=(1.0,),
    beta2=(0.0,),
    beta3=(0.0,),
    beta4=(0.0,),
)

SDE_TABLEAUX = {tableau.name: tableau for tableau in (_SOSRI, _SOSRI2, _SRIW1, _SOSRA, _EM)}
"""Every stochastic method by name."""
