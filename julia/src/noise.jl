# A Brownian path that someone else owns, as a noise process of DiffEqNoiseProcess.

"""
    PathNoise(source, t0, t1, prototype)

The noise of an SDE read from a path: `source(w, z, s, t)` writes the increments over [s, t] of the
Wiener process to `w` and to `z` those of the second one that methods of order 1.5 use,
`z = 2 sqrt(3) H` with the path's space-time Levy area H (so that I_(1,0)/h = w/2 + H). The path, not
the solver, decides the numbers: rejected steps do not change them.
"""
mutable struct PathNoise{T, V <: AbstractVector{T}, F} <: AbstractNoiseProcess{T, 2, Nothing, true}
    const source::F
    const t_end::Float64
    curt::Float64
    dt::Float64
    const dW::V
    const dZ::V
    const reset::Bool
end

function PathNoise(source, t0, t1, prototype::V) where {T, V <: AbstractVector{T}}
    dW, dZ = fill!(similar(prototype), 0), fill!(similar(prototype), 0)
    return PathNoise{T, V, typeof(source)}(source, t1, t0, 0.0, dW, dZ, true)
end

Base.copy(noise::PathNoise) = noise  # one solve, one process
Base.show(io::IO, noise::PathNoise) = print(io, "PathNoise at t = $(noise.curt)")

function DiffEqNoiseProcess.calculate_step!(noise::PathNoise, dt, u, p)
    s, t = noise.curt, noise.curt + dt
    slack = 100 * eps(max(abs(t), abs(noise.t_end)))
    abs(t - noise.t_end) <= slack && (t = noise.t_end)  # where the integrator will land
    noise.source(noise.dW, noise.dZ, s, t)
    noise.dt = dt
    return nothing
end

DiffEqNoiseProcess.setup_next_step!(noise::PathNoise, u, p) =
    DiffEqNoiseProcess.calculate_step!(noise, noise.dt, u, p)

DiffEqNoiseProcess.reject_step!(noise::PathNoise, dtnew, u, p) =
    DiffEqNoiseProcess.calculate_step!(noise, dtnew, u, p)

function DiffEqNoiseProcess.accept_step!(noise::PathNoise, dt, u, p, setup_next = true)
    noise.curt += noise.dt
    noise.dt = dt
    setup_next && DiffEqNoiseProcess.calculate_step!(noise, dt, u, p)
    return nothing
end

DiffEqNoiseProcess.save_noise!(::PathNoise) = nothing
