"""Nine kinds of public models, written anew and small, each trained as its code trains it."""

from __future__ import annotations

from paper_experiments import public_cells, public_points, public_series
from paper_experiments.public_model import Client

CLIENTS: dict[str, Client] = {
    client.name: client for group in (public_series, public_points, public_cells) for client in group.CLIENTS
}
