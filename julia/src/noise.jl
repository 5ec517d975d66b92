# A Brownian path that someone else owns, as a noise process of DiffEqNoiseProcess: its functions are in the extension.

"""
    PathNoise(source, t0, ends, prototype)

The noise of an SDE read from a path: `source(w, z, s, t)` writes the increments over [s, t] of the
Wiener process to `w` and to `z` those of the second one that methods of order 1.5 use,
`z = 2 sqrt(3) H` with the path's space-time Levy area H (so that I_(1,0)/h = w/2 + H). The path, not
the solver, decides the numbers: rejected steps do not change them. `ends` are the end time, and other
times at which the integrator lands exactly, if there are any.
"""
mutable struct PathNoise{T, V <: AbstractVector{T}, F} <: AbstractNoiseProcess{T, 2, Nothing, true}
    const source::F
    const ends::Vector{Float64}
    curt::Float64
    next::Float64
    dt::Float64
    const dW::V
    const dZ::V
    const W::Vector{V}  # where DiffEqBase looks for the number of processes
    const reset::Bool
end

function PathNoise(source, t0, ends, prototype::V) where {T, V <: AbstractVector{T}}
    dW, dZ = fill!(similar(prototype), 0), fill!(similar(prototype), 0)
    return PathNoise{T, V, typeof(source)}(source, Float64[ends...], t0, t0, 0.0, dW, dZ, [dW], true)
end

Base.copy(noise::PathNoise) = noise  # one solve, one process
Base.show(io::IO, noise::PathNoise) = print(io, "PathNoise at t = $(noise.curt)")
