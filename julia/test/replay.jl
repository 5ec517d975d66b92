# The recorded steps made again, at their recorded times and sizes, with other parameters: what the
# discrete gradient is the gradient of.

using RegNDE: Field, Rosenbrock, RosenbrockStep, Step, confine!, dense_output!, estimates!, evaluate!, extra_stages!,
    recall!, segment_at, stochastic_estimates!, stochastic_step, take_step!

struct Replay{T}
    ys::Matrix{T}
    error::Vector{T}
    stiffness::Vector{T}
end

Replay(rec, y0::Vector{T}) where {T} = Replay(similar(rec.ys, T), T[], T[])

"Replays an ODE's recording from `y0` (flat), in its number type, with `dynamics`."
function replay(rec, dynamics, shape, y0)
    (; rtol, atol) = rec.settings
    field = Field(dynamics, shape, typeof(y0))
    out = Replay(rec, y0)
    save_at!(out.ys, rec, 0, y0, nothing)
    y = copy(y0)
    for n in eachindex(rec.dt)
        confine!(field, rec.segments[segment_at(rec, rec.t[n])])
        t, h, t1 = n == 1 ? rec.times[1] : rec.t[n - 1], rec.dt[n], rec.t[n]
        step, tableau = started(rec, n, field, t, y)
        take_step!(step, tableau, field, t, h, t1)
        extra_stages!(step, tableau, field)
        (; error, stiffness) = estimates!(step, tableau, rtol, atol)
        push!(out.error, error)
        isnan(stiffness) || push!(out.stiffness, stiffness)
        save_at!(out.ys, rec, n, step.y1, theta -> dense_output!(step.scratch, step, tableau, theta))
        copyto!(y, step.y1)
    end
    return out
end

"A step of the method that made step `n`, ready to be taken from (t, y), and that method's coefficients."
function started(rec, n, field, t, y)
    m = rec.method
    if m isa Rosenbrock && rec.implicit[n]
        step = RosenbrockStep(m.tableau, y)
        copyto!(step.arguments[1], y)
        return step, m.tableau
    end
    tableau = m isa Rosenbrock ? m.explicit : m.tableau
    step = Step(tableau, y)
    copyto!(step.arguments[1], y)
    evaluate!(step.k[1], field, t, y)
    return step, tableau
end

"Replays an SDE's recording with its recorded increments."
function replay(rec, drift, diffusion, shape, y0; columns = 0)
    (; rtol, atol) = rec.settings
    fields = Field(drift, shape, typeof(y0)), Field(diffusion, shape, typeof(y0); columns)
    step, formula, _ = stochastic_step(rec.method, y0, fields...)
    len, out = length(y0), Replay(rec, y0)
    save_at!(out.ys, rec, 0, y0, nothing)
    y = copy(y0)
    for n in eachindex(rec.dt)
        foreach(field -> confine!(field, rec.segments[segment_at(rec, rec.t[n])]), fields)
        t, h, t1 = n == 1 ? rec.times[1] : rec.t[n - 1], rec.dt[n], rec.t[n]
        recall!(step, [y; rec.tape[n][(len + 1):end]], formula, fields..., t, h, t1)
        (; error, stiffness) = stochastic_estimates!(step, formula, rtol, atol)
        isnan(error) || push!(out.error, error)
        isnan(stiffness) || push!(out.stiffness, stiffness)
        save_at!(out.ys, rec, n, step.y1, theta -> (1 - theta) * y + theta * step.y1)
        copyto!(y, step.y1)
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
        middle = x[i]
        x[i] = middle + step
        above = loss(exact...)
        x[i] = middle - step
        below = loss(exact...)
        x[i] = middle
        d[i] = (above - below) / 2step
    end
    scale = maximum(d -> maximum(abs, d; init = big"0.0"), differences)
    return Float64(maximum(maximum(abs, d - g; init = big"0.0") for (d, g) in zip(differences, gradients)) / scale)
end
