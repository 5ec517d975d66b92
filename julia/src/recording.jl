# How to solve, and what a solve gathers: its steps, and the states at the save times.

"""
    Segment(t_end, low, high)

A part of the span between two stops: where its last step ends, and the bounds of the times that the
field is given there, inside the open interval and in the state's precision.
"""
struct Segment
    t_end::Float64
    low::Float64
    high::Float64
end

"The segments from t0 to t1 between `stops`, those outside the span left out; `T` is the precision of the field's times."
function segments(::Type{T}, t0, t1, stops) where {T}
    list, from, rising = Segment[], t0 in stops ? t0 : nothing, t1 > t0
    inner = filter(s -> min(t0, t1) < s < max(t0, t1), unique(stops))
    for to in [sort(inner; rev = !rising); t1]
        at, other = (from, to == t1 && !(t1 in stops) ? nothing : to)
        below, above = rising ? (at, other) : (other, at)
        low, high = below === nothing ? -Inf : nextfloat(T(below)), above === nothing ? Inf : prevfloat(T(above))
        push!(list, Segment(to, low, high))
        from = to
    end
    return list
end

"""
    Settings(; rtol, atol, dt0 = NaN, dt_min = 0.0, dt_max = Inf, controller = nothing, segments = Segment[],
        grid = Float64[], max_steps = 100_000, record = true, dense = false, keep = :stages)

How to solve: tolerances (numbers, or arrays like the state), first step (NaN: chosen automatically), bounds
of the steps that the error control chooses, a function that makes the controller for an algorithm (or
`nothing` for its own), the [`Segment`](@ref)s of the span if there are stops, the ends of the steps of a method
of fixed step size (stops and, within the limit of attempts, the end time among them), that limit, whether error and
stiffness are recorded, whether the interpolants of all steps are, and what the tape keeps of each
step for the reverse sweep: `:nothing`, `:states` (one state a step; stages are computed again) or `:stages`.
"""
Base.@kwdef struct Settings{R, A, C}
    rtol::R
    atol::A
    dt0::Float64 = NaN
    dt_min::Float64 = 0.0
    dt_max::Float64 = Inf
    controller::C = nothing
    segments::Vector{Segment} = Segment[]
    grid::Vector{Float64} = Float64[]
    max_steps::Int = 100_000
    record::Bool = true
    dense::Bool = false
    keep::Symbol = :stages
end

"A saved state: row of the output, step that holds it (0: the initial state), place in the step."
struct Output
    row::Int
    step::Int
    theta::Float64
end

"""
    Recording

What a solve gathered. `t`, `dt`, `error`, `stiffness`: one entry an accepted step; `implicit`: whether
an implicit method made it. `ys`: the saved states as columns. `status`: `:success`, `:nonfinite`,
`:underflow` or `:steps`, with `reason`, or `:event`. `first_error`: estimate of the first accepted step, whether or
not the others are recorded; NaN without one. `crossings`: the steps with events. `pieces`: of these steps, or of all,
the `piece_steps`, what the interpolant is made of: state at the start and all slopes, or both ends' states of a
stochastic method. `tape`: what the reverse sweep needs, and which [`Retired`](@ref) steps it is of. `jacobians` and `factorisations` count those of implicit methods.
"""
mutable struct Recording{V <: AbstractVector, M <: Method, O <: AbstractMatrix, K, S <: Settings}
    const method::M
    const settings::S
    const segments::Vector{Segment}
    const times::Vector{Float64}
    const y0::V
    const ys::O
    const t::Vector{Float64}
    const dt::Vector{Float64}
    const error::Vector{Float64}
    const stiffness::Vector{Float64}
    const implicit::Vector{Bool}
    const outputs::Vector{Output}
    const crossings::Vector{Crossing}
    const pieces::Vector{V}
    const piece_steps::Vector{Int}
    const tape::Vector{K}
    retired::Union{Nothing, Retired{V}}
    saved::Int
    rejected::Int
    jacobians::Int
    factorisations::Int
    dt_first::Float64
    t_last::Float64
    dt_last::Float64
    first_error::Float64
    status::Symbol
    reason::String
end

function Recording(method, settings, times, y0, ys)
    segments = isempty(settings.segments) ? [Segment(times[end], -Inf, Inf)] : settings.segments
    return Recording(
        method, settings, segments, times, y0, ys, Float64[], Float64[], Float64[], Float64[], Bool[], Output[],
        Crossing[], typeof(y0)[], Int[], tape_entry(method, typeof(y0))[], nothing, 0, 0, 0, 0, 0.0, times[1], 0.0, NaN, :success, ""
    )
end

"The tape's entry for a step: the step or, where it is taken again, the state at its start (and the noise)."
tape_entry(::Method, ::Type{V}) where {V} = V
tape_entry(::RungeKutta, ::Type{V}) where {V} = Step{V}

"Times at which a step ends: the end time, and the stops before it."
ends(rec::Recording) = [segment.t_end for segment in rec.segments]

"Number of accepted steps."
accepted(rec::Recording) = length(rec.dt)

function save_start!(rec::Recording)
    t0, flat = rec.times[1], rec.times[1] == rec.times[end]
    while rec.saved < length(rec.times) && (flat || rec.times[rec.saved + 1] == t0)
        push_output!(rec, 0, 0.0, rec.y0)
    end
    return rec
end

function push_output!(rec::Recording, step, theta, y)
    rec.saved += 1
    copyto!(view(rec.ys, :, rec.saved), y)
    push!(rec.outputs, Output(rec.saved, step, theta))
    return rec
end

"Saves the states at the save times in (t, t1]; `inside(theta)` gives one strictly inside the step."
function save_outputs!(inside, rec::Recording, t, h, t1, y1)
    step, sign = accepted(rec), h < 0 ? -1 : 1
    while rec.saved < length(rec.times)
        s = rec.times[rec.saved + 1]
        sign * s > sign * t1 && break
        if s == t1
            push_output!(rec, step, 1.0, y1)
        else
            theta = (s - t) / h
            push_output!(rec, step, theta, inside(theta))
        end
    end
    return rec
end

function push_step!(rec::Recording, h, t1)
    push!(rec.t, t1)
    push!(rec.dt, h)
    rec.t_last = t1
    return rec
end
