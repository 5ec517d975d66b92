"""diffrax, compiled, and what `Solver(compile=True)` gives against it; compile times apart."""

from __future__ import annotations

import time

import torch

from benchmarks.fields import FIELDS
from benchmarks.ode import gradient_of
from benchmarks.peers import regnde_solve, steps_of
from benchmarks.timing import race

__all__ = ["against_diffrax"]


def against_diffrax() -> list[dict[str, object]]:
    """Microseconds a trial step on 4-32-4, B=64: diffrax under jit, ours uncompiled and compiled."""
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return [{"diffrax": "not installed: pip install diffrax 'jax[cpu]'"}]
    setup = FIELDS[1]
    f, y0, ts = setup.make()
    weights = [jnp.asarray(p.detach().numpy()) for p in f.parameters()]
    start = jnp.asarray(y0.numpy())

    def field(t: float, y: jnp.ndarray, w: list[jnp.ndarray]) -> jnp.ndarray:
        return jnp.tanh(y @ w[0].T + w[1]) @ w[2].T + w[3]

    def solve(w: list[jnp.ndarray]) -> tuple[jnp.ndarray, jnp.ndarray]:
        sol = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            0.0,
            setup.end,
            None,
            start,
            w,
            stepsize_controller=diffrax.PIDController(rtol=setup.tolerance, atol=setup.tolerance),
        )
        return (sol.ys[-1] ** 2).sum(), sol.stats["num_steps"]

    forward, backward = jax.jit(solve), jax.jit(jax.grad(solve, has_aux=True))
    began = time.perf_counter()
    steps = int(jax.block_until_ready(forward(weights))[1])
    jax.block_until_ready(backward(weights))
    jax_compile = time.perf_counter() - began

    plain, compiled = regnde_solve("dp5"), regnde_solve("dp5", compile=True)
    count, _ = steps_of(plain, f, y0, ts, setup.tolerance)
    began = time.perf_counter()
    with torch.no_grad():
        compiled(f, y0, ts, setup.tolerance)
    gradient_of(compiled, f, y0, ts, setup.tolerance)()
    torch_compile = time.perf_counter() - began

    def no_grad(run: object) -> object:
        with torch.no_grad():
            return run(f, y0, ts, setup.tolerance)

    ahead = race(
        {
            "diffrax": lambda: jax.block_until_ready(forward(weights)),
            "regnde": lambda: no_grad(plain),
            "regnde compiled": lambda: no_grad(compiled),
        },
        9,
    )
    back = race(
        {
            "diffrax": lambda: jax.block_until_ready(backward(weights)),
            "regnde": gradient_of(plain, f, y0, ts, setup.tolerance),
            "regnde compiled": gradient_of(compiled, f, y0, ts, setup.tolerance),
        },
        9,
    )
    taken = {"diffrax": steps, "regnde": count, "regnde compiled": count}
    waits = {"diffrax": jax_compile, "regnde": 0.0, "regnde compiled": torch_compile}
    return [
        {
            "solver": name,
            "steps": round(taken[name]),
            "forward us/step": round(1e6 * ahead[name] / taken[name]),
            "training us/step": round(1e6 * back[name] / taken[name]),
            "compile s": round(waits[name], 1),
        }
        for name in taken
    ]
