# The recorded steps made again, at their recorded times and sizes, with other parameters: what the
# discrete gradient is the gradient of.

using RegNDE: Field, NoiseStages, Stages, dense_weights, error_estimate!, evaluate!, extra_stages!,
    stiffness_estimate, take_step!

struct Replay{T}
    ys::Matrix{T}
    error::Vector{T}
    stiffness::Vector{T}
end

Replay(rec, y0::Vector{T}) where {T} = Replay(similar(rec.ys, T), T[], T[])

"Replays an ODE's recording from `y0` (flat), in its number type, with `dynamics`."
function replay(rec, dynamics, shape, y0)
    tableau, (; rtol, atol) = rec.method.tableau, rec.settings
    field = Field(dynamics, shape, typeof(y0))
    s = Stages(tableau, y0)
    out = Replay(rec, y0)
    save_at!(out.ys, rec, 0, y0, nothing)
    y = copy(y0)
    for n in eachindex(rec.dt)
        t, h, t1 = n == 1 ? rec.times[1] : rec.t[n - 1], rec.dt[n], rec.t[n]
        copyto!(s.g[1], y)
        evaluate!(s.k[1], field, t, y)
        take_step!(s, tableau, field, t, h, t1)
        extra_stages!(s, tableau, field, t, h, t1)
        push!(out.error, error_estimate!(s, tableau, h, rtol, atol))
        tableau.pair && push!(out.stiffness, stiffness_estimate(s, tableau))
        save_at!(out.ys, rec, n, s.y1, theta -> y + h * sum(dense_weights(tableau, theta) .* s.k))
        copyto!(y, s.y1)
    end
    return out
end

"Replays an SDE's recording with its recorded increments."
function replay(rec, drift, diffusion, shape, y0)
    tableau, (; rtol, atol) = rec.method.tableau, rec.settings
    fields = Field(drift, shape, typeof(y0)), Field(diffusion, shape, typeof(y0))
    s, len = NoiseStages(tableau, y0), length(y0)
    out = Replay(rec, y0)
    save_at!(out.ys, rec, 0, y0, nothing)
    y = copy(y0)
    for n in eachindex(rec.dt)
        t, h = n == 1 ? rec.times[1] : rec.t[n - 1], rec.dt[n]
        copyto!(s.H0[1], y)
        copyto!(s.dW, view(rec.tape[n], (len + 1):(2len)))
        copyto!(s.dZ, view(rec.tape[n], (2len + 1):(3len)))
        take_step!(s, tableau, fields..., t, h)
        tableau.adaptive && push!(out.error, error_estimate!(s, tableau, h, rtol, atol))
        tableau.pair && push!(out.stiffness, stiffness_estimate(s, tableau))
        save_at!(out.ys, rec, n, s.y1, theta -> (1 - theta) * y + theta * s.y1)
        copyto!(y, s.y1)
    end
    return out
end

function save_at!(ys, rec, step, y1, inside)
    for output in rec.outputs
        output.step == step || continue
        at_end = step == 0 || output.theta == 1
        ys[:, output.row] .= at_end ? y1 : inside(output.theta)
    end
    return ys
end

"""
Largest difference between gradients and central differences of `loss(arrays...)`, relative to the
largest entry. The differences are taken in 256 bits, where they have no rounding to speak of.
"""
function against_differences(loss, arrays, gradients)
    step = big"1e-25"
    exact = map(x -> BigFloat.(x), arrays)
    differences = map(similar, exact)
    for (x, d) in zip(exact, differences), i in eachindex(x)
        kept = x[i]
        x[i] = kept + step
        above = loss(exact...)
        x[i] = kept - step
        below = loss(exact...)
        x[i] = kept
        d[i] = (above - below) / 2step
    end
    scale = maximum(d -> maximum(abs, d; init = big"0.0"), differences)
    return Float64(maximum(maximum(abs, d - g; init = big"0.0") for (d, g) in zip(differences, gradients)) / scale)
end
