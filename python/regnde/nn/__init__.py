"""Layers: fields and the neural differential equations that solve them."""

from regnde.nn._augmented import Augmented
from regnde.nn._cnf import CNF, Density
from regnde.nn._control_path import ControlPath, CubicPath, LinearPath, RectilinearPath
from regnde.nn._latent import BackwardGRU, LatentODE, Reconstruction
from regnde.nn._latent_sde import ContextGRU, LatentSDE, PathReconstruction
from regnde.nn._mlp import MLP
from regnde.nn._neural_cde import NeuralCDE
from regnde.nn._neural_ode import NeuralODE
from regnde.nn._neural_sde import NeuralSDE

__all__ = [
    "CNF",
    "MLP",
    "Augmented",
    "BackwardGRU",
    "ContextGRU",
    "ControlPath",
    "CubicPath",
    "Density",
    "LatentODE",
    "LatentSDE",
    "LinearPath",
    "NeuralCDE",
    "NeuralODE",
    "NeuralSDE",
    "PathReconstruction",
    "Reconstruction",
    "RectilinearPath",
]
