# What is recorded of each accepted step: one recorder for each kind of method.

"""
The stages that an explicit method evaluates, noted on the way; `on_tape`: the tape has their arrays; `watch`: the
[`Watch`](@ref) over the steps, or `nothing`.
"""
mutable struct StageRecorder{V, T}
    const step::Step{V}
    const tableau::Tableau
    const rhs::RightHandSide{V, T}
    on_tape::Bool
    watch::Union{Nothing, Watch{V, T}}
end

"Likewise the drifts of a stochastic method, and the increments of its noise."
struct SDERecorder{V, T}
    step::SDEStep{V}
    tableau::NoiseTableau
    rhs::RightHandSide{V, T}
    diffusion::RightHandSide{V, T}
end

"The fields of a stochastic method that is given by its evaluations, and a scratch array."
struct SchemeRecorder{V, T, C}
    code::C
    rhs::RightHandSide{V, T}
    diffusion::RightHandSide{V, T}
    step::SchemeStep{V}
    scheme::Scheme
end

const StochasticRecorder = Union{SDERecorder, SchemeRecorder}

"Estimates and interpolant of an integrator whose step is not described by a tableau here."
struct IntegratorRecorder{V, T}
    step::Step{V}
    rhs::RightHandSide{V, T}
end

"Gives the step's stages arrays for their residuals."
function keep_residuals!(step::Step, tableau::Tableau, field)
    foreach(i -> step.residuals[i] = residuals(field), 1:tableau.stages)
    return step
end

function recorder(m::RungeKutta, settings, y0, field::Field)
    step = Step(m.tableau, y0)
    settings.keep === :stages && keep_residuals!(step, m.tableau, field)
    rhs = RightHandSide(field, step.k, step.arguments, step.residuals, m.tableau.stages)
    return StageRecorder(step, m.tableau, rhs, false, nothing)
end

function recorder(m::StochasticRungeKutta, settings, y0, drift::Field, diffusion::Field)
    step, n = SDEStep(m.tableau, y0), m.tableau.drifts
    rhs = RightHandSide(drift, step.k[1:n], step.H0[1:n])
    return SDERecorder(step, m.tableau, rhs, RightHandSide(diffusion))
end

function recorder(m::StochasticScheme, settings, y0, drift::Field, diffusion::Field)
    step = SchemeStep(m.scheme, y0, diffusion)
    return SchemeRecorder(m.code, RightHandSide(drift), RightHandSide(diffusion), step, m.scheme)
end

recorder(::Implicit, settings, y0, field::Field) = IntegratorRecorder(Step(TSIT5, y0), RightHandSide(field))

"Looks for the zeros of conditions from the start of the solve on."
watch!(recorder::StageRecorder, conditions::Conditions, rec) =
    recorder.watch = Watch(conditions, rec.times[1], rec.y0)
watch!(_, ::Nothing, _) = nothing

functions(recorder) = ODEFunction{true, FullSpecialize}(recorder.rhs)
functions(recorder::StochasticRecorder) = SDEFunction{true, FullSpecialize}(recorder.rhs, recorder.diffusion)

"Called before an attempt: notes which stage's slope is evaluated first."
function before_attempt!(recorder::StageRecorder)
    recorder.on_tape && renew!(recorder.step, recorder.tableau, recorder.rhs.field)
    recorder.on_tape = false
    recorder.rhs.slot[] = recorder.tableau.fsal ? 2 : 1
    return nothing
end
before_attempt!(recorder::SDERecorder) = recorder.rhs.slot[] = 1
before_attempt!(::Union{SchemeRecorder, IntegratorRecorder}) = nothing

"Makes an attempt: by the integrator's own code, where the method does not say otherwise."
attempt!(_, integrator) = perform_step!(integrator, integrator.cache)
attempt!(recorder::SchemeRecorder{<:Any, <:Any, Nothing}, integrator) = perform_step!(integrator, integrator.cache)
attempt!(recorder::SchemeRecorder, integrator) =
    attempt_out_of_place!(integrator, recorder.code, recorder.rhs.field, recorder.diffusion.field)

function attempt!(recorder::SchemeRecorder{<:Any, <:Any, Symbol}, integrator)
    (; step, scheme) = recorder
    (; t, dt, opts) = integrator
    copyto!(step.arguments[1], integrator.uprev)
    copyto!(step.dW, integrator.W.dW)
    take_scheme_step!(step, scheme, recorder.rhs.field, recorder.diffusion.field, t, dt, t + dt)
    copyto!(integrator.u, step.y1)
    set_EEst!(integrator, scheme_estimates!(step, scheme, opts.reltol, opts.abstol).error)
    return nothing
end

"Called at a stop: the field may have jumped, and nothing that an FSAL method carries over is right."
function start_anew!(recorder::StageRecorder, integrator)
    (; step, tableau, rhs) = recorder
    tableau.fsal || return nothing
    recorder.on_tape && renew!(step, tableau, rhs.field; carry = false)
    recorder.on_tape = false
    rhs.slot[] = 1  # the integrator evaluates the first stage before `before_attempt!` is called
    return derivative_discontinuity!(integrator, true)
end
start_anew!(::IntegratorRecorder, integrator) = derivative_discontinuity!(integrator, true)
start_anew!(::StochasticRecorder, _) = nothing

"Releases the memory that the tape has not taken."
release!(recorder::StageRecorder) = recorder.on_tape || release!(recorder.step, 2)

function record_step!(rec::Recording, recorder::StageRecorder, integrator, t, h, t1)
    (; step, tableau) = recorder
    step.t, step.h, step.t1 = t, h, t1
    tableau.fsal || copyto!(step.y1, integrator.u)
    rec.settings.record && push!(rec.error, error_of(integrator))
    add_step!(rec, recorder)
    if tableau.fsal && !recorder.on_tape
        copyto!(step.k[1], step.k[tableau.stages])
        copyto!(step.arguments[1], step.arguments[tableau.stages])
    end
    return rec
end

"Adds the recorder's step, apart from its error; tells whether the stages of its interpolant were evaluated."
function add_step!(rec::Recording, recorder::StageRecorder)
    (; step, tableau, rhs, watch) = recorder
    (; t, h, t1) = step
    push_step!(rec, h, t1)
    tableau.pair && rec.settings.record && push!(rec.stiffness, stiffness_estimate(step, tableau))
    recorder.on_tape = keep!(rec, step, tableau)
    ready = Ref(false)
    # the slope at the end of a step of fixed size may be the next one's first, and go on the tape
    again = !adapts(rec.method) && rec.settings.keep === :stages
    interpolant!() = ready[] || (extra_stages!(step, tableau, rhs.field; keep = again); ready[] = true)
    inside(theta) = (interpolant!(); dense_output!(step.scratch, step, tableau, theta))
    found = watch === nothing ? nothing :
        crossing(time -> inside((time - t) / h), watch, accepted(rec), t, t1, step.y1)
    if rec.settings.dense || found !== nothing
        interpolant!()
        foreach(x -> push!(rec.pieces, copy(x)), (step.arguments[1], step.k...))
        push!(rec.piece_steps, accepted(rec))
    end
    if found !== nothing
        push!(rec.crossings, found)
        stops(watch.conditions, found) && (rec.status = :event)
    end
    save_outputs!(inside, rec, t, h, t1, step.y1)
    return ready[]
end

"Keeps the step itself, or a copy of the state at its start; tells whether the tape has taken the stages."
function keep!(rec::Recording{V}, step::Step, tableau) where {V}
    if rec.settings.keep === :stages
        push!(rec.tape, snapshot(step, tableau))
        return true
    elseif rec.settings.keep === :states
        y = copyto!(acquire!(V, length(rec.y0)), step.arguments[1])
        push!(rec.tape, Step(step.t, step.h, step.t1, V[], [y], Any[], y, step.scratch))
    end
    return false
end

"The step as it is now; [`renew!`](@ref) then gives the next one other arrays."
function snapshot(step::Step, tableau::Tableau)
    (; t, h, t1, k, arguments, residuals, y1, scratch) = step
    stages = 1:tableau.stages
    return Step(t, h, t1, k[stages], arguments[stages], residuals[stages], y1, scratch)
end

"Arrays for the step after one that the tape has taken; with `carry` the first stage is that one's last."
function renew!(step::Step{V}, tableau::Tableau, field; carry = tableau.fsal) where {V}
    (; k, arguments, residuals), n, len = step, tableau.stages, length(step.scratch)
    carry && ((k[1], arguments[1], residuals[1]) = (k[n], arguments[n], residuals[n]))
    for i in (carry ? 2 : 1):n
        k[i], arguments[i], residuals[i] = acquire!(V, len), acquire!(V, len), RegNDE.residuals(field)
    end
    step.y1 = tableau.fsal ? arguments[n] : acquire!(V, len)
    return step
end

"An array that begins with the state at the start of a step."
start_of(entry::Step) = entry.arguments[1]
start_of(entry) = entry

"Releases the memory of stages from `first` on, and of the step's end."
function release!(step::Step, first = 1)
    (; k, arguments, residuals) = step
    any(i -> isassigned(arguments, i) && arguments[i] === step.y1, eachindex(arguments)) || release!(step.y1)
    for i in first:length(arguments)
        isassigned(arguments, i) && release!(arguments[i])
        i <= length(k) && isassigned(k, i) && release!(k[i])
        i <= length(residuals) && residuals[i] !== nothing && foreach(release!, residuals[i])
    end
    return nothing
end

"Releases the tape's memory; the recording has no reverse any more."
function release!(rec::Recording)
    for (i, entry) in enumerate(rec.tape)
        if entry isa Step
            # an FSAL method's first stage is the last one of the step before
            release!(entry, i > 1 && entry.arguments[1] === rec.tape[i - 1].arguments[end] ? 2 : 1)
        else
            release!(entry)
        end
    end
    empty!(rec.tape)
    return nothing
end

function record_step!(rec::Recording, recorder::StochasticRecorder, integrator, t, h, t1)
    push_step!(rec, h, t1)
    rec.settings.record && push_estimates!(rec, recorder, integrator)
    rec.settings.keep === :nothing || push!(rec.tape, taped(rec.method, integrator.uprev, integrator.W))
    rec.settings.dense && foreach(y -> push!(rec.pieces, copy(y)), (integrator.uprev, integrator.u))
    save_outputs!(rec, t, h, t1, integrator.u) do theta
        @. recorder.step.scratch = (1 - theta) * integrator.uprev + theta * integrator.u
    end
    return rec
end

function push_estimates!(rec::Recording, recorder::SDERecorder, integrator)
    (; step, tableau) = recorder
    tableau.adaptive && push!(rec.error, error_of(integrator))
    tableau.pair && push!(rec.stiffness, sde_stiffness_estimate(step, tableau))
    return nothing
end

function push_estimates!(rec::Recording, ::SchemeRecorder, integrator)
    adapts(rec.method) && push!(rec.error, error_of(integrator))
    return nothing
end

"What the tape keeps of a stochastic step: the state at its start and the noise, one after the other."
taped(m::StochasticScheme, y, noise) = has_second(m.scheme) ? [y; noise.dW; noise.dZ] : [y; noise.dW]
taped(::StochasticRungeKutta, y, noise) = [y; noise.dW; noise.dZ]

function record_step!(rec::Recording, recorder::IntegratorRecorder, integrator, t, h, t1)
    step = recorder.step
    push_step!(rec, h, t1)
    switching = rec.method.name === :autotsit5
    implicit = !switching || integrator.cache.current == 2
    push!(rec.implicit, implicit)
    if rec.settings.record
        push!(rec.error, error_of(integrator))
        switching && push!(rec.stiffness, switching_stiffness!(step, integrator, h, implicit))
    end
    rec.settings.keep === :nothing || push!(rec.tape, copy(integrator.uprev))
    save_outputs!(rec, t, h, t1, integrator.u) do theta
        next = integrator.dt
        integrator.dt = h  # the interpolant measures theta in this
        ode_addsteps!(integrator)
        ode_interpolant!(step.scratch, theta, integrator, nothing, Val{0})
        integrator.dt = next
        step.scratch
    end
    return rec
end

"While tsit5 is active its stages' quotient, else the norm of the Jacobian that the implicit method has."
function switching_stiffness!(step::Step, integrator, h, implicit)
    implicit && return Float64(integrator.eigen_est)
    cache = integrator.cache.caches[1]
    for (i, name) in enumerate((:k1, :k2, :k3, :k4, :k5, :k6, :k7))
        copyto!(step.k[i], getproperty(cache, name))
    end
    copyto!(step.arguments[1], integrator.uprev)
    copyto!(step.y1, integrator.u)
    shifted!(step.arguments[6], step.arguments[1], step.k, view(TSIT5.a, 6, :), h, 5)
    return stiffness_estimate(step, TSIT5)
end
