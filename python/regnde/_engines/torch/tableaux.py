"""Coefficients of the explicit Runge-Kutta methods: a method is a tableau and nothing else.

Sources, retyped:
  tsit5   Ch. Tsitouras, Comput. Math. Appl. 62 (2011) 770-775, with its free fourth-order interpolant.
  dp5     J. R. Dormand, P. J. Prince, J. Comput. Appl. Math. 6 (1980) 19-26; interpolant and step control
          of E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.6.
  bs3     P. Bogacki, L. F. Shampine, Appl. Math. Lett. 2 (1989) 321-325.
  vern7   J. H. Verner, Numer. Algorithms 53 (2010) 383-396, the "most efficient" 7(6) pair and interpolant.
  heun2, heun3, rk4, rk38   K. Heun 1900, W. Kutta 1901, as in Hairer, Norsett, Wanner I, II.1; rk38 is the 3/8 rule.
The step control defaults and stability sizes are OrdinaryDiffEq.jl's (v7).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from regnde._engines.torch.control import Controller

__all__ = ["TABLEAUX", "Tableau"]

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method with s stages k_i = f(t + c_i h, y + h sum_j a_ij k_j).

    Attributes:
        name: the name users give.
        order: order of the solution that is carried on.
        a: rows of the stage weights; row i has i entries.
        c: stage times as fractions of the step.
        b: weights of the new state; equal to the last row of `a` when `fsal`.
        btilde: weights of the error, embedded minus main; None for a fixed-step method.
        dense: row j holds the coefficients of theta, theta^2, ... in the weight of stage j of the
            interpolant y(t + theta h) = y + h sum_j weight_j(theta) k_j; it may use extra stages.
        extra_a, extra_c: further stages that the interpolant needs, evaluated where an output asks.
        fsal: the last stage is the first of the next step.
        stability_size: extent of the stability region along the negative real axis.
        stiffness_pair: whether the last two stages both lie at t + h, so that their quotient
            estimates the stiffness.
        controller: the step size control, None for a fixed-step method.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    c: Row
    b: Row
    dense: tuple[Row, ...]
    btilde: Row | None = None
    extra_a: tuple[Row, ...] = ()
    extra_c: Row = ()
    fsal: bool = False
    stability_size: float | None = None
    stiffness_pair: bool = False
    controller: Controller | None = field(default=None)

    @property
    def rows(self) -> list[Row]:
        """All weights of sums of stages, each once."""
        return [row for row in dict.fromkeys([*self.a, *self.extra_a, self.b, self.btilde or ()]) if row]

    def places(self, width: int = 1) -> dict[Row, slice]:
        """Where each of `rows` lies if they are laid one after another, `width` places for an entry."""
        ends = itertools.accumulate(width * len(row) for row in self.rows)
        return {row: slice(end - width * len(row), end) for row, end in zip(self.rows, ends, strict=True)}

    @property
    def estimates_error(self) -> bool:
        """Whether the method has an embedded error estimate."""
        return self.btilde is not None

    @property
    def stages(self) -> int:
        """Number of stages, the FSAL one included."""
        return len(self.c)


def _hermite(b: Row, slope_at_end: int, quartic: Row = ()) -> tuple[Row, ...]:
    """The cubic Hermite interpolant as weights of the stages, plus theta^2 (1 - theta)^2 times `quartic`.

    Stage 0 is the slope at the start and `slope_at_end` the index of the one at the end. The quartic
    term is the one of dp5's interpolant (Hairer, Norsett, Wanner, II.6).
    """
    rows = []
    for j in range(slope_at_end + 1):
        bj = b[j] if j < len(b) else 0.0
        row = [0.0, 3.0 * bj, -2.0 * bj, 0.0]
        if j == 0:  # theta (1 - theta)^2
            row = [row[0] + 1.0, row[1] - 2.0, row[2] + 1.0, 0.0]
        if j == slope_at_end:  # theta^2 (theta - 1)
            row = [row[0], row[1] - 1.0, row[2] + 1.0, 0.0]
        if quartic:
            d = quartic[j]
            row = [row[0], row[1] + d, row[2] - 2.0 * d, d]
        rows.append(tuple(row))
    return tuple(rows)


def _fixed(name: str, order: int, a: tuple[Row, ...], c: Row, b: Row) -> Tableau:
    """A fixed-step method; its outputs between steps are cubic Hermite, with one more slope at the end."""
    return Tableau(name, order, a, c, b, dense=_hermite(b, len(c)), extra_a=(b,), extra_c=(1.0,))


_TSIT5_A = (
    (),
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
)
_TSIT5_BTILDE = (
    -0.00178001105222577714,
    -0.0008164344596567469,
    0.007880878010261995,
    -0.1447110071732629,
    0.5823571654525552,
    -0.45808210592918697,
    1 / 66,
)
_TSIT5_DENSE = (
    (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
    (0.0, 0.1317, -0.2234, 0.1017),
    (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
    (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
    (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
    (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
    (0.0, 1.5, -4.0, 2.5),
)

_DP5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_DP5_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    _DP5_B,
)
_DP5_BTILDE = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
_DP5_QUARTIC = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)

_BS3_B = (2 / 9, 1 / 3, 4 / 9)

_VERN7_A = (
    (),
    (0.005,),
    (-1.07679012345679, 1.185679012345679),
    (0.04083333333333333, 0.0, 0.1225),
    (0.6389139236255726, 0.0, -2.455672638223657, 2.272258714598084),
    (-2.6615773750187572, 0.0, 10.804513886456137, -8.3539146573962, 0.820487594956657),
    (6.067741434696772, 0.0, -24.711273635911088, 20.427517930788895, -1.9061579788166472, 1.006172249242068),
    (
        12.054670076253203,
        0.0,
        -49.75478495046899,
        41.142888638604674,
        -4.461760149974004,
        2.042334822239175,
        -0.09834843665406107,
    ),
    (
        10.138146522881808,
        0.0,
        -42.6411360317175,
        35.76384003992257,
        -4.3480228403929075,
        2.0098622683770357,
        0.3487490460338272,
        -0.27143900510483127,
    ),
    (
        -45.030072034298676,
        0.0,
        187.3272437654589,
        -154.02882369350186,
        18.56465306347536,
        -7.141809679295079,
        1.3088085781613787,
        0.0,
        0.0,
    ),
)
_VERN7_C = (0.0, 0.005, 0.10888888888888888, 0.16333333333333333, 0.4555, 0.6095094489978381, 0.884, 0.925, 1.0, 1.0)
_VERN7_B = (
    0.04715561848627222,
    0.0,
    0.0,
    0.25750564298434153,
    0.26216653977412624,
    0.15216092656738558,
    0.4939969170032485,
    -0.29430311714032503,
    0.08131747232495111,
    0.0,
)
_VERN7_BTILDE = (
    0.002547011879931045,
    0.0,
    0.0,
    -0.00965839487279575,
    0.04206470975639691,
    -0.0666822437469301,
    0.2650097464621281,
    -0.29430311714032503,
    0.08131747232495111,
    -0.02029518466335628,
)
_VERN7_EXTRA_A = (
    (
        0.04715561848627222,
        0.0,
        0.0,
        0.25750564298434153,
        0.2621665397741262,
        0.15216092656738558,
        0.49399691700324844,
        -0.29430311714032503,
        0.0813174723249511,
        0.0,
    ),
    (
        0.0523222769159969,
        0.0,
        0.0,
        0.22495861826705715,
        0.017443709248776376,
        -0.007669379876829393,
        0.03435896044073285,
        -0.0410209723009395,
        0.025651133005205617,
        0.0,
        -0.0160443457,
    ),
    (
        0.053053341257859085,
        0.0,
        0.0,
        0.12195301011401886,
        0.017746840737602496,
        -0.0005928372667681495,
        0.008381833970853752,
        -0.01293369259698612,
        0.009412056815253861,
        0.0,
        -0.005353253107275676,
        -0.06666729992455811,
    ),
    (
        0.03887903257436304,
        0.0,
        0.0,
        -0.0024403203308301317,
        -0.0013928917214672623,
        -0.00047446291558680135,
        0.00039207932413159514,
        -0.00040554733285128004,
        0.00019897093147716726,
        0.0,
        -0.00010278198793179169,
        0.03385661513870267,
        0.1814893063199928,
    ),
    (
        0.05723681204690013,
        0.0,
        0.0,
        0.22265948066761182,
        0.12344864200186899,
        0.04006332526666491,
        -0.05269894848581452,
        0.04765971214244523,
        -0.02138895885042213,
        0.0,
        0.015193891064036402,
        0.12060546716289655,
        -0.022779423016187374,
        0.0,
    ),
    (
        0.051372038802756814,
        0.0,
        0.0,
        0.5414214473439406,
        0.350399806692184,
        0.14193112269692182,
        0.10527377478429423,
        -0.031081847805874016,
        -0.007401883149519145,
        0.0,
        -0.006377932504865363,
        -0.17325495908361865,
        -0.18228156777622026,
        0.0,
        0.0,
    ),
)
_VERN7_EXTRA_C = (1.0, 0.29, 0.125, 0.25, 0.53, 0.79)
_VERN7_DENSE = (
    (
        1.0,
        -8.413387198332767,
        33.675508884490895,
        -70.80159089484886,
        80.64695108301298,
        -47.19413969837522,
        11.133813442539243,
    ),
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (
        0.0,
        8.754921980674396,
        -88.4596828699771,
        346.9017638429916,
        -629.2580030059837,
        529.6773755604193,
        -167.35886986514018,
    ),
    (
        0.0,
        8.913387586637922,
        -90.06081846893218,
        353.1807459217058,
        -640.6476819744374,
        539.2646279047156,
        -170.38809442991547,
    ),
    (
        0.0,
        5.1733120298478,
        -52.271115900055385,
        204.9853867374073,
        -371.8306118563603,
        312.9880934374529,
        -98.89290352172495,
    ),
    (
        0.0,
        16.79537744079696,
        -169.70040000059728,
        665.4937727009246,
        -1207.1638892336007,
        1016.1291515818546,
        -321.06001557237494,
    ),
    (
        0.0,
        -10.005997536098665,
        101.1005433052275,
        -396.47391512378437,
        719.1787707014183,
        -605.3681033918824,
        191.27439892797935,
    ),
    (
        0.0,
        2.764708833638599,
        -27.934602637390462,
        109.54779186137893,
        -198.7128113064482,
        167.26633571640318,
        -52.85010499525706,
    ),
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (
        0.0,
        -2.1696320280163506,
        22.016696037569876,
        -86.90152427798948,
        159.22388973861476,
        -135.9618306534588,
        43.792401183280006,
    ),
    (
        0.0,
        -4.890070188793804,
        22.75407737425176,
        -30.78034218537731,
        -2.797194317207249,
        31.369456637508403,
        -15.655927320381801,
    ),
    (
        0.0,
        10.862170929551967,
        -50.542971417827104,
        68.37148040407511,
        6.213326521632409,
        -69.68006323194157,
        34.776056794509195,
    ),
    (
        0.0,
        -11.37286691922923,
        130.79058078246717,
        -488.65113677785604,
        832.2148793276441,
        -664.7743368554426,
        201.79288044241662,
    ),
    (
        0.0,
        -5.919778732715007,
        63.27679965889219,
        -265.432682088738,
        520.1009254140611,
        -467.412109533902,
        155.3868452824017,
    ),
    (
        0.0,
        -10.492146197961823,
        105.35538525188011,
        -409.43975011988937,
        732.831448907654,
        -606.3044574733512,
        188.0495196316683,
    ),
)

_ALL = (
    Tableau(
        "tsit5",
        5,
        _TSIT5_A,
        (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        _TSIT5_A[-1],
        _TSIT5_DENSE,
        _TSIT5_BTILDE,
        fsal=True,
        stability_size=3.5068,
        stiffness_pair=True,
        controller=Controller.for_order(5),
    ),
    Tableau(
        "dp5",
        5,
        _DP5_A,
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        _DP5_B,
        _hermite(_DP5_B, 6, _DP5_QUARTIC),
        _DP5_BTILDE,
        fsal=True,
        stability_size=3.3066,
        stiffness_pair=True,
        controller=Controller(beta1=0.17, beta2=0.04),  # Hairer's choice, kept by OrdinaryDiffEq.jl
    ),
    Tableau(
        "bs3",
        3,
        ((), (1 / 2,), (0.0, 3 / 4), _BS3_B),
        (0.0, 1 / 2, 3 / 4, 1.0),
        _BS3_B,
        _hermite(_BS3_B, 3),
        (5 / 72, -1 / 12, -1 / 9, 1 / 8),
        fsal=True,
        controller=Controller.for_order(3),
    ),
    Tableau(
        "vern7",
        7,
        _VERN7_A,
        _VERN7_C,
        _VERN7_B,
        _VERN7_DENSE,
        _VERN7_BTILDE,
        _VERN7_EXTRA_A,
        _VERN7_EXTRA_C,
        stability_size=4.64,
        stiffness_pair=True,
        controller=Controller.for_order(7),
    ),
    _fixed("euler", 1, ((),), (0.0,), (1.0,)),
    _fixed("midpoint", 2, ((), (1 / 2,)), (0.0, 1 / 2), (0.0, 1.0)),
    _fixed("heun2", 2, ((), (1.0,)), (0.0, 1.0), (1 / 2, 1 / 2)),
    _fixed("heun3", 3, ((), (1 / 3,), (0.0, 2 / 3)), (0.0, 1 / 3, 2 / 3), (1 / 4, 0.0, 3 / 4)),
    _fixed(
        "rk4", 4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (0.0, 1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
    _fixed(
        "rk38",
        4,
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (0.0, 1 / 3, 2 / 3, 1.0),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
)

TABLEAUX: dict[str, Tableau] = {tableau.name: tableau for tableau in _ALL}
"""Every method of this engine by name."""
