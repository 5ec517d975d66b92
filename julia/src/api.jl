# The public pair, for use from Julia alone.

"""
    solve_recorded(field, u0, ts; method = :tsit5, rtol, atol, ...) -> Recorded

Solves u' = field from `ts[1]` to `ts[end]`, saves the states at `ts`, and records every accepted step.

`field` is a [`Dynamics`](@ref), or a pair `(drift, diffusion)` of them for an SDE, in the sense of the method. The
diffusion is an array like the state for diagonal noise or, with `columns = m`, of size (m, size(u0)...): for each sample,
the last dimensions, a matrix with m columns. Keywords: `method` (a name of `RegNDE.METHODS`), `rtol` and `atol` (1e-6; 1e-2 for an SDE),
`dt0` (first step; every step for `:em`, `:rk4` and others of fixed size), `dt_min` and `dt_max` (bounds of steps), `controller` (a function of an
algorithm that returns a controller of OrdinaryDiffEqCore), `stops` (times at which the field may jump: steps
end there, and the field is evaluated beside them), `max_steps`, `record` (estimates of error and stiffness),
`keep` (`:stages`, `:states` or `:nothing`, see [`RegNDE.Settings`](@ref)), `noise` (a process of
DiffEqNoiseProcess for an SDE) and `mass` (a matrix M for M u' = field, by Rosenbrock methods; `u0` must satisfy the
equations of a singular one that are algebraic, which is not checked).

The result has `ys` (the states, last dimension the save times), `t`, `dt`, `error`, `stiffness`
(one entry a step), `status` and `nfe`. [`pullback`](@ref) goes back over it.

# Example

```jldoctest
julia> using RegNDE

julia> f!(dy, t, y, p, cache) = (dy .= p[1] .* y; nothing);

julia> vjp!(ybar, pbar, ct, t, y, p, cache) = (ybar .= p[1] .* ct; pbar[1] .+= sum(ct .* y); nothing);

julia> sol = solve_recorded(Dynamics(f!, vjp!, ([-1.0],), nothing), [1.0], [0.0, 1.0]);

julia> u0bar, (pbar,) = pullback(sol; ys = [0.0 1.0]);

julia> isapprox(pbar[1], exp(-1); rtol = 1e-4)
true
```
"""
function solve_recorded(
        dynamics, u0::AbstractArray, ts; method::Symbol = :tsit5, rtol = nothing, atol = nothing,
        dt0 = NaN, dt_min = 0.0, dt_max = Inf, controller = nothing, stops = Float64[], max_steps = 100_000,
        record = true, keep = :stages, noise = nothing, columns = 0, mass = nothing
    )
    parts = dynamics isa Dynamics ? (dynamics,) : Tuple(dynamics)
    default = length(parts) == 1 ? 1.0e-6 : 1.0e-2
    between = isempty(stops) ? Segment[] : segments(realtype(u0), first(ts), last(ts), stops)
    m = with_mass(RegNDE.method(method), mass === nothing ? I : Mass(mass))
    settings = Settings(;
        rtol = something(rtol, default), atol = something(atol, default), dt0, dt_min, dt_max, controller, max_steps,
        record, keep, segments = between, grid = m isa FixedStep ? grid_of(ts, between, dt0, max_steps) : Float64[]
    )
    y0 = vec(copy(u0))
    ys = similar(y0, length(y0), length(ts))
    recording = Recording(m, settings, collect(Float64, ts), y0, ys)
    fields = fields_like(parts, size(u0), typeof(y0), columns, map(_ -> nothing, parts))
    forward!(recording, fields...; noise)
    return Recorded(recording, parts, size(u0), columns, sum(f -> f.calls[], fields))
end

"The right-hand sides as fields; `columns` are those of the second."
fields_like(parts, shape, V, columns, pbars) = ntuple(length(parts)) do i
    Field(parts[i], shape, V; pbar = pbars[i], columns = i == 1 ? 0 : columns)
end

function grid_of(ts, segments, dt0, max_steps)
    dt0 > 0 || throw(ArgumentError("the method has a fixed step: give its size, `dt0`"))
    abs(last(ts) - first(ts)) / dt0 < max_steps + 1 ||
        throw(ArgumentError("steps of size $dt0 are more than max_steps = $max_steps"))
    return uniform(first(ts), isempty(segments) ? (last(ts),) : map(s -> s.t_end, segments), dt0)
end

"What [`solve_recorded`](@ref) returns."
struct Recorded{R, D}
    recording::R
    dynamics::D
    shape::Dims
    columns::Int
    nfe::Int
end

function Base.getproperty(sol::Recorded, name::Symbol)
    name in fieldnames(Recorded) && return getfield(sol, name)
    recording = getfield(sol, :recording)
    name === :ys && return reshape(recording.ys, getfield(sol, :shape)..., :)
    return getproperty(recording, name)
end

Base.propertynames(::Recorded) =
    (fieldnames(Recorded)..., :ys, :t, :dt, :error, :stiffness, :implicit, :status, :reason, :rejected)

function Base.show(io::IO, sol::Recorded)
    rec = sol.recording
    return print(io, "Recorded($(accepted(rec)) steps, $(rec.rejected) rejected, $(sol.nfe) evaluations, $(rec.status))")
end

"""
    pullback(sol; ys = nothing, error = nothing, stiffness = nothing) -> (u0bar, pbar)

Gradient of the discrete solution: given the cotangents of `sol.ys`, `sol.error` and `sol.stiffness`
returns those of the initial state and of the parameters (a tuple like the field's; a pair of tuples
for an SDE). Times and sizes of the steps are constants.

That of an implicit method has a gradient if it is a Rosenbrock method and the field has [`WithTangents`](@ref RegNDE.WithTangents);
else an `ArgumentError` says so.
"""
function pullback(sol::Recorded; ys = nothing, error = nothing, stiffness = nothing)
    rec = sol.recording
    rec.method isa Implicit && throw(
        ArgumentError("$(rec.method.name) solves implicit equations: its steps are not differentiated")
    )
    cotangents = Cotangents(rec, ys, error, stiffness)
    pbars = map(part -> map(p -> fill!(similar(p), 0), part.p), sol.dynamics)
    fields = fields_like(sol.dynamics, sol.shape, typeof(rec.y0), sol.columns, pbars)
    y0bar = reverse!(similar(rec.y0), rec, fields..., cotangents)
    return reshape(y0bar, sol.shape), length(pbars) == 1 ? pbars[1] : pbars
end
