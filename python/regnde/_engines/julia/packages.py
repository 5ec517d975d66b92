"""The Julia packages that are installed where they are asked for. All else comes with our own (juliapkg.json)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ADJOINTS",
    "CUDA",
    "FFT",
    "GROUPS",
    "ROSENBROCK",
    "SDE",
    "SDIRK",
    "STIFF",
    "ZYGOTE",
    "Group",
    "Package",
]


@dataclass(frozen=True)
class Package:
    """A Julia package.

    Attributes:
        name: its name.
        uuid: its uuid.
        version: which ones; by default what the other packages of Julia's project need.
        workload: whether its own precompile workload is run. Without one nothing is compiled that no solve of ours
            uses.
    """

    name: str
    uuid: str
    version: str | None = None
    workload: bool = True


@dataclass(frozen=True)
class Group:
    """Julia packages that come with an option of `python -m regnde julia`.

    Attributes:
        option: the option, without its dashes.
        content: what the packages are for.
        takes: how long their installation takes.
        packages: those that are loaded.
        behind: those that they need, where something is to be set of them.
    """

    option: str
    content: str
    takes: str
    packages: tuple[Package, ...]
    behind: tuple[Package, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the packages that are loaded."""
        return tuple(package.name for package in self.packages)


def _behind(name: str, uuid: str) -> Package:
    return Package(name, uuid, workload=False)


ROSENBROCK = Package("OrdinaryDiffEqRosenbrock", "43230ef6-c299-4910-a778-202eb28ce4ce", "2", workload=False)
SDIRK = Package("OrdinaryDiffEqSDIRK", "2d112036-d095-4a1e-ab9a-08536f3ecdbf", "2", workload=False)
ZYGOTE = Package("Zygote", "e88e6eb3-aa80-5325-afca-941959d7151f", "0.7")
_LINEAR = (
    _behind("LinearSolve", "7ed4a6bd-45f5-4d41-b270-4a48e9bafcae"),
    _behind("SparseColumnPivotedQR", "a57abbd0-fea5-4d57-96be-5e525945e8e4"),
)
_SIMPLE_NONLINEAR = _behind("SimpleNonlinearSolve", "727e6d20-b764-4bd8-a329-72de5adea6c7")

STIFF = Group(
    "stiff",
    "methods for stiff ODEs: rosenbrock23, rodas4, rodas5p, autotsit5, trbdf2, kencarp4",
    "about two minutes",
    (ROSENBROCK, SDIRK),
    (
        *_LINEAR,
        _behind("LineSearch", "87fe0de2-c867-4266-b59a-2f0a94fc965b"),
        _behind("NonlinearSolve", "8913a72c-1f9b-4ce2-8d82-65094dcecaec"),
        _behind("NonlinearSolveFirstOrder", "5959db7a-ea39-4486-b5fe-2dd0bf03d60d"),
        _behind("NonlinearSolveQuasiNewton", "9a2c21bd-3a47-402d-9113-8faf9a0ee114"),
        _behind("NonlinearSolveSpectralMethods", "26075421-4e9a-44e1-8bd1-420ed7ad02b2"),
        _SIMPLE_NONLINEAR,
        _behind("SparseMatrixColorings", "0a514795-09f3-496d-8182-132a7b665d35"),
    ),
)
SDE = Group(
    "sde",
    "methods for SDEs",
    "about two minutes",
    (
        Package("DiffEqNoiseProcess", "77a26b50-5914-5dd7-bc55-306e6241c503", "5"),
        Package("StochasticDiffEqHighOrder", "0520c28c-50fd-4d16-9c96-902fc80b3bab", "2"),
        Package("StochasticDiffEqLowOrder", "d15fe365-ce7f-450a-828a-7985bd5b681b", "2"),
    ),
    (_SIMPLE_NONLINEAR,),
)
ADJOINTS = Group(
    "adjoints",
    "SciMLSensitivity's adjoints and gradients of a JuliaField",
    "about ten minutes",
    (
        Package("SciMLSensitivity", "1ed8b502-d754-442c-8d5d-10ac956f44a1", "7"),
        Package("ChainRulesCore", "d360d2e6-b24c-11e9-a2a3-2a2ae2dbcce4", "1"),
        Package("Tracker", "9f7883ad-71c0-57eb-9f7f-b5c9e6d3789c", "0.2"),
        ZYGOTE,
    ),
    _LINEAR,
)
FFT = Group(
    "fft",
    "fields with Fourier transforms",
    "about a minute",
    (Package("FFTW", "7a1cc6ca-52ef-59f5-83cd-3a7055c09341", "1"),),
)
CUDA = Group(
    "cuda",
    "tensors on CUDA devices",
    "several minutes",
    (
        Package("CUDA", "052768ef-5323-5732-b1bb-66c8b64840ba"),
        Package("DLPack", "53c2dc0f-f7d5-43fd-8906-6c0220547083"),
    ),
)
GROUPS = (STIFF, SDE, FFT, ADJOINTS, CUDA)
