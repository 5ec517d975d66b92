# The forward solve: DifferentialEquations.jl's own integrators step; every accepted step is recorded.

const NON_FINITE_ATTEMPTS = 6  # before the field, not the step size, is held to be at fault

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

"The integrator's error estimate of its last attempt."
error_of(integrator) = Float64(get_EEst(integrator))

const SILENT = DEVerbosity(SciMLLogging.None())

"""
Solves from `recording.y0`; `field` is one [`Field`](@ref), or drift and diffusion of an SDE. `conditions`: the
[`Conditions`](@ref) whose zeros are looked for, with explicit and Rosenbrock methods.
"""
function forward!(rec::Recording, fields...; noise = nothing, conditions = nothing)
    begin!(rec, fields) || return rec
    solver = Solver(rec, fields, noise)
    solve!(rec, solver, fields, conditions)
    release!(solver.recorder)
    return rec
end

"Saves the states at the start; whether there are steps to make."
function begin!(rec::Recording, fields)
    save_start!(rec)
    rec.times[1] == rec.times[end] && return false
    foreach(field -> confine!(field, rec.segments[1]), fields)
    return true
end

"""
    Solver(recording, fields, noise = nothing)

The recorder of a solve's steps and the integrator that makes them, ready for the first step.
"""
struct Solver{R, I}
    recorder::R
    integrator::I
end

function Solver(rec::Recording, fields, noise = nothing)
    steps, span = recorder(rec.method, rec.settings, rec.y0, fields...), (rec.times[1], rec.times[end])
    problem = length(fields) == 1 ? ODEProblem(functions(steps), rec.y0, span) :
        SDEProblem(functions(steps), rec.y0, span; noise, noise_rate_prototype = noise_prototype(fields[2], rec.y0))
    return Solver(steps, init(problem, rec.method.algorithm; options(rec, fields)...))
end

"Makes the steps: the part of [`forward!`](@ref) that is compiled for each type of integrator."
function solve!(rec::Recording, solver::Solver, fields, conditions)
    (; recorder, integrator) = solver
    watch!(recorder, conditions, rec)
    rec.retired = kind_of(recorder)
    distance = rec.times[end] - rec.times[1]
    integrator.opts.dtmax = copysign(min(rec.settings.dt_max, abs(distance)), distance)
    bound!(integrator, rec.settings.dt_min)
    rec.dt_first = integrator.dt
    GC.@preserve recorder run!(rec, integrator, recorder, fields)
    rec.jacobians, rec.factorisations = counts(recorder, integrator)
    return rec
end

"The diffusion that is a matrix, for states like `y`; `nothing` for one that is entrywise."
function noise_prototype(diffusion::Field, y)
    (; columns, rows) = diffusion
    return columns == 0 ? nothing : NoiseMatrix(fill!(similar(y, length(y) * columns), 0), columns, rows)
end

"What every integrator is made with."
function tolerances(settings::Settings, y)
    T = realtype(y)
    return (;
        reltol = converted(T, settings.rtol), abstol = converted(T, settings.atol), save_everystep = false, dense = false,
        verbose = SILENT,
    )
end

function options(rec::Recording, fields)
    controller, longest = rec.settings.controller, longest_first(rec)
    # interpolants of implicit methods are asked of the integrator, those of explicit ones are ours
    common = (;
        tolerances(rec.settings, rec.y0)..., save_start = false, save_end = false, calck = rec.method isa Implicit,
        maxiters = typemax(Int), tstops = ends(rec),
        dtmax = abs(longest), # of the first step; `solve!` sets that of the others
    )
    dt0 = first_size(rec, fields)
    sized = isnan(dt0) ? common : (; common..., dt = copysign(min(dt0, abs(longest)), longest))
    # a start that does not satisfy algebraic equations is refused, not changed
    checked = has_mass(rec.method) ? (; sized..., initializealg = NoInit()) : sized
    return controller === nothing ? checked : (; checked..., controller = controller(rec.method.algorithm))
end

"The longest first step, in the direction of the solve: it ends at a stop."
function longest_first(rec::Recording)
    distance = rec.segments[1].t_end - rec.times[1]
    return copysign(min(rec.settings.dt_max, abs(distance)), distance)
end

has_mass(::Method) = false
has_mass(::Rosenbrock{<:Any, <:Any, <:Mass}) = true

"The size of the first step; NaN leaves it to the integrator, which with a mass matrix would take a fixed one."
function first_size(rec::Recording, fields)
    (; method, settings, times) = rec
    (has_mass(method) && isnan(settings.dt0)) || return settings.dt0
    return abs(initial_size(method, settings, fields[1], rec.y0, times[1], rec.segments[1].t_end))
end

"""
Gives the next attempt that size, at least `dt_min` where no stop is nearer. The size after it will follow from the
size that is tried, whatever the integrator wanted before a stop cut it.
"""
function bound!(integrator, dt_min, size = integrator.dt)
    abs(size) < dt_min && !integrator.next_step_tstop && (size = copysign(dt_min, size))
    if size != integrator.dt
        integrator.dt = size
        modify_dt_for_tstops!(integrator)
    end
    integrator.dtpropose = integrator.dt
    return nothing
end

function run!(rec::Recording, integrator, recorder, fields)
    t_end, (; max_steps, dt_min), field, current = rec.times[end], rec.settings, fields[1], 1
    failures, earliest = 0, integrator.t  # non-finite attempts, and the earliest time that one aimed at
    wanted, non_finite = 0.0, false  # size that the control wants after an accepted step; of the last attempt
    while integrator.t != t_end
        check_stop_flag()
        if accepted(rec) + rec.rejected >= max_steps
            return fail!(rec, integrator, :steps, "$max_steps steps did not reach the end time $t_end")
        end
        t = integrator.t
        loopheader!(integrator)
        shrunk = non_finite && length(fields) == 1  # the noise has been told the controller's size
        bound!(integrator, dt_min, shrunk ? rec.dt_last / 5 : integrator.dt)
        if integrator.do_error_check && check_error!(integrator) != ReturnCode.Success
            return diagnose!(rec, integrator, field)
        end
        before_attempt!(recorder)
        attempt!(recorder, integrator)
        h = integrator.dt
        # a step that a stop cuts has an error that says little of those that the control wants
        cut = abs(h) < wanted && current < length(rec.segments)
        control = cut ? deepcopy(integrator.controller_cache) : integrator.controller_cache
        isnan(error_of(integrator)) && set_EEst!(integrator, Inf)  # controllers know what to do with that
        _loopfooter!(integrator)
        if integrator.accept_step
            t1 = integrator.t
            if cut
                sync_controllers!(integrator.controller_cache, control)
                integrator.dtpropose = copysign(max(abs(integrator.dtpropose), wanted), h)
            end
            wanted, non_finite = adapts(rec.method) ? abs(integrator.dtpropose) : 0.0, false
            # after a step cut at the end time the integrator may hold the next size already
            abs(h - (t1 - t)) <= 8 * eps(max(abs(t), abs(t1))) || (h = t1 - t)
            accepted(rec) == 0 && adapts(rec.method) && (rec.first_error = error_of(integrator))
            record_step!(rec, recorder, integrator, t, h, t1)
            rec.status === :success || return rec
            # `PIDController` accepts larger ones, which implicit methods would take for a rejection: they would keep J
            error_of(integrator) > 1 && set_EEst!(integrator, 1)
            handle_tstop!(integrator)
            if t1 == rec.segments[current].t_end && current < length(rec.segments)
                current += 1
                for f in fields  # a closure would box `current`
                    confine!(f, rec.segments[current])
                end
                start_anew!(recorder, integrator)
            end
            failures > 0 && abs(t1 - rec.times[1]) >= abs(earliest - rec.times[1]) && (failures = 0)
        else
            rec.rejected += 1
            rec.dt_last, wanted = h, 0.0
            non_finite = !integrator.force_stepfail && !isfinite(error_of(integrator))
            if non_finite
                failures += 1
                earliest = failures == 1 || abs(h) < abs(earliest - t) ? t + h : earliest
                if failures >= NON_FINITE_ATTEMPTS || count_bad(field, t, integrator.uprev) > 0
                    return fail!(rec, integrator, :nonfinite, non_finite_reason(field, integrator))
                end
            end
            if abs(h) <= dt_min
                return fail!(rec, integrator, :underflow, too_small(integrator, "dt_min=$dt_min"))
            end
        end
    end
    return rec
end

function fail!(rec::Recording, integrator, status, reason)
    rec.status, rec.reason = status, reason
    rec.dt_last == 0 && (rec.dt_last = integrator.dt)
    return rec
end

"Turns the integrator's return code into one of our failures."
function diagnose!(rec::Recording, integrator, field)
    code = integrator.sol.retcode
    if code == ReturnCode.DtNaN || !all(isfinite, integrator.u) || count_bad(field, integrator.t, integrator.uprev) > 0
        return fail!(rec, integrator, :nonfinite, non_finite_reason(field, integrator))
    end
    code == ReturnCode.ConvergenceFailure &&
        return fail!(rec, integrator, :underflow, "the implicit equations of a step could not be solved")
    return fail!(rec, integrator, :underflow, too_small(integrator, "the clock's resolution"))
end

"What is wrong with a step that would have to be below some size, with what the last attempt showed."
function too_small(integrator, size)
    E, y = error_of(integrator), maximum(abs, integrator.u; init = zero(realtype(integrator.u)))
    return "the error control asks for a step below $size (error ratio $E, |y| up to $y)"
end

"How many components of the slope at (t, y) are not finite."
function count_bad(field, t, y)
    slope = value!(similar(y), field, t, y)
    return count(!isfinite, slope)
end

function non_finite_reason(field, integrator)
    (; t, dt, u) = integrator
    bad = count_bad(field, t + dt, u)
    return bad > 0 ? "the dynamics are not finite: $bad of $(length(u)) components" :
        "the dynamics are not finite in trial steps from t = $t"
end

# --- outputs ---------------------------------------------------------------------------------------

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
