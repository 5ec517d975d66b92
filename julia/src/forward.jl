# The forward solve: DifferentialEquations.jl's own integrators step; every accepted step is recorded.

const NON_FINITE_ATTEMPTS = 6  # before the field, not the step size, is held to be at fault

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
