"""torchdiffeq's methods by their names there; its adaptive ones that `solve` does not have, as tableaux.

Julia has none of these, so that they do not stand in `tableaux.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal

from regnde._grid_method import IMPLICIT_TABLEAUX
from regnde._tableau import TABLEAUX, Tableau, hermite

__all__ = ["ADAMS_METHODS", "ADAPTIVE_METHODS", "EXPLICIT_METHODS", "Kind", "kind_of"]

Kind = Literal["adaptive", "explicit", "adams", "implicit", "scipy"]

EXPLICIT_METHODS = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun2", "heun3": "heun3", "rk4": "rk38"}
"""Those of fixed step size, and how `solve` calls them."""

ADAMS_METHODS = {"explicit_adams": False, "implicit_adams": True, "fixed_adams": True}
"""Whether they are implicit."""


class PredictedSlope(Tableau):
    """A method that takes its last stage, at the predicted state, for the slope at the new state, as torchdiffeq does.

    It saves an evaluation a step. The predicted state differs from the new one by less than the method's error.
    """

    carries = True


# P. J. Prince, J. R. Dormand, J. Comput. Appl. Math. 7 (1981) 67-75, RK8(7)13M. `DOPRI8_DENSE` is a continuous
# extension of order 5: torchdiffeq takes its value at theta = 1/2 for an interpolation of its own.
# fmt: off
DOPRI8_A: tuple[Any, ...] = (
    (),
    ("1/18",),
    ("1/48", "1/16"),
    ("1/32", 0, "3/32"),
    ("5/16", 0, "-75/64", "75/64"),
    ("3/80", 0, 0, "3/16", "3/20"),
    ("29443841/614563906", 0, 0, "77736538/692538347", "-28693883/1125000000", "23124283/1800000000"),
    ("16016141/946692911", 0, 0, "61564180/158732637", "22789713/633445777", "545815736/2771057229",
     "-180193667/1043307555"),
    ("39632708/573591083", 0, 0, "-433636366/683701615", "-421739975/2616292301", "100302831/723423059",
     "790204164/839813087", "800635310/3783071287"),
    ("246121993/1340847787", 0, 0, "-37695042795/15268766246", "-309121744/1061227803", "-12992083/490766935",
     "6005943493/2108947869", "393006217/1396673457", "123872331/1001029789"),
    ("-1028468189/846180014", 0, 0, "8478235783/508512852", "1311729495/1432422823", "-10304129995/1701304382",
     "-48777925059/3047939560", "15336726248/1032824649", "-45442868181/3398467696", "3065993473/597172653"),
    ("185892177/718116043", 0, 0, "-3185094517/667107341", "-477755414/1098053517", "-703635378/230739211",
     "5731566787/1027545527", "5232866602/850066563", "-4093664535/808688257", "3962137247/1805957418",
     "65686358/487910083"),
    ("403863854/491063109", 0, 0, "-5068492393/434740067", "-411421997/543043805", "652783627/914296604",
     "11173962825/925320556", "-13158990841/6184727034", "3936647629/1978049680", "-160528059/685178525",
     "248638103/1413531060", 0),
    ("14005451/335480064", 0, 0, 0, 0, "-59238493/1068277825", "181606767/758867731", "561292985/797845732",
     "-1041891430/1371343529", "760417239/1151165299", "118820643/751138087", "-528747749/2220607170", "1/4"),
)
DOPRI8_EMBEDDED: tuple[Any, ...] = (
    "13451932/455176623", 0, 0, 0, 0, "-808719846/976000145", "1757004468/5645159321", "656045339/265891186",
    "-3867574721/1518517206", "465885868/322736535", "53011238/667516719", "2/45", 0, 0,
)
DOPRI8_DENSE: tuple[Any, ...] = (
    (1, -6.69101817378375957, 19.999006933368397061, -30.0610568289666450593, 22.1396504998094068976,
     -6.3448349392860401388),
    *[()] * 4,
    (0, -7.6142658045872677172, 52.227353279294552405, -121.4999627731334642623, 116.4422149550342161651,
     -39.6107919852202505218),
    (0, 10.7281392630428866124, -46.8919164181093621583, 83.1721004639847717481, -67.1451318825957197185,
     20.3761213808791436958),
    (0, 0.5526637063753648783, -0.1890893225010595467, 9.5724507555993664382, -16.5672243527496524646,
     7.3347098826795362023),
    (0, 4.2186562625665153803, -35.7075975946222072821, 87.8406057677205645007, -89.9916014847245016028,
     32.8801774352459155182),
    (0, -0.6627209125361597559, 6.273644808324035216, -17.4152107770762969005, 22.6237489648532849093,
     -10.1588990526426760954),
    (0, -1.2636789001135462218, 10.3160881272450748458, -28.5903289514790976966, 32.2362340167355370113,
     -12.54012680987825612),
    (0, 5.410603789859042223, -34.7650769866611817349, 81.6630950584341412934, -82.1020315488359848644,
     29.5553001484516038033),
    (0, -7.0321379067945741781, 47.7457971078225540396, -114.9375291377009418170, 116.2662185791119533462,
     -41.7923486424390588923),
    (0, 2.3537586759714983486, -19.0082099341608028453, 50.2558364226176017553, -53.9020777466385396792,
     20.3006925822100825485),
)
# fmt: on
# L. F. Shampine, Math. Comp. 46 (1986) 135-150: another error estimate for the method of Dormand and Prince.
DOPRI5_EMBEDDED: tuple[Any, ...] = ("1951/21600", 0, "22642/50085", "451/720", "-12231/42400", "649/6300", "1/60")
# K. Heun, Z. Math. Phys. 45 (1900) 23-38, with Euler's method embedded.
HEUN: dict[str, Any] = {"a": ((), (1,)), "b": ("1/2", "1/2"), "btilde": ("1/2", "-1/2")}
# E. Fehlberg, NASA Technical Report R-315 (1969), RK1(2).
FEHLBERG: dict[str, Any] = {
    "a": ((), ("1/2",), ("1/256", "255/256")),
    "b": ("1/512", "255/256", "1/512"),
    "btilde": ("1/512", 0, "-1/512"),
}


def _tableaux() -> Mapping[str, Tableau]:
    """The methods by torchdiffeq's names."""
    dp5 = TABLEAUX["dp5"]
    heun, fehlberg = (hermite(tuple(float(Fraction(x)) for x in m["b"]), len(m["b"]) - 1) for m in (HEUN, FEHLBERG))
    return MappingProxyType(
        {
            "dopri8": Tableau(
                "dopri8",
                order=8,
                a=DOPRI8_A,
                b=DOPRI8_A[-1],
                btilde=_differences(DOPRI8_EMBEDDED, DOPRI8_A[-1]),
                dense=DOPRI8_DENSE,
            ),
            "dopri5": Tableau(
                "dopri5",
                order=5,
                a=dp5.a,
                b=dp5.b,
                btilde=_differences(DOPRI5_EMBEDDED, dp5.b),
                dense=dp5.dense,
                stability_size=dp5.stability_size,
            ),
            "tsit5": TABLEAUX["tsit5"],
            "bosh3": TABLEAUX["bs3"],
            "adaptive_heun": PredictedSlope("adaptive_heun", order=2, dense=heun, **HEUN),
            "fehlberg2": PredictedSlope("fehlberg2", order=2, dense=fehlberg, **FEHLBERG),
        }
    )


def _differences(embedded: Sequence[Any], main: Sequence[Any]) -> Any:
    """Weights of the error estimate: embedded minus main ones; the main ones have none for the last stage."""
    return tuple(Fraction(e) - Fraction(b) for e, b in zip(embedded, (*main, 0), strict=True))


ADAPTIVE_METHODS = _tableaux()

_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("dopri5", "tsit5", "bosh3", "dopri8", "fehlberg2", "adaptive_heun"), "adaptive"),
    **dict.fromkeys(EXPLICIT_METHODS, "explicit"),
    **dict.fromkeys(ADAMS_METHODS, "adams"),
    **dict.fromkeys(IMPLICIT_TABLEAUX, "implicit"),
    "scipy_solver": "scipy",
}


def kind_of(method: str) -> Kind:
    """What kind of method a name of torchdiffeq's is."""
    if method not in _KINDS:
        raise ValueError(f"odeint: there is no method {method!r}; choose one of {', '.join(_KINDS)}.")
    return _KINDS[method]
