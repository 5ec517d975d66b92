# What is recorded of each accepted step: one recorder for each kind of method.

"""
The stages that an explicit method evaluates, noted on the way; `on_tape`: the tape has their arrays; `watch`: the
[`Watch`](@ref) over the steps, or `nothing`. `retired`: what steps for the tape are taken from, or `nothing`; `spare` is
one whose arrays `step` has taken. `packed`: the step where the tape takes copies, or `nothing`.
"""
mutable struct StageRecorder{V, T}
    const step::Step{V}
    const tableau::Tableau
    const rhs::RightHandSide{V, T}
    const retired::Union{Nothing, Retired{V}}
    const packed::Union{Nothing, PackedStep{V}}
    spare::Union{Nothing, Step{V}}
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

"Estimates and interpolant of an integrator whose step is not described by a tableau here, and a scratch array."
struct IntegratorRecorder{V, T}
    scratch::V
    rhs::RightHandSide{V, T}
end

"The steps of a Rosenbrock method, and of the explicit one that it may switch to; `derivatives` of a field with tangents."
mutable struct RosenbrockRecorder{V, T, S, E, D}
    const implicit::S
    const explicit::E
    const rhs::RightHandSide{V, T}
    const derivatives::D
    watch::Union{Nothing, Watch{V, T}}
end

"Gives the step's stages arrays for their residuals."
function keep_residuals!(step::Step, tableau::Tableau, field)
    foreach(i -> step.residuals[i] = residuals(field), 1:tableau.stages)
    return step
end

function recorder(m::RungeKutta, settings, y0, field::Field)
    taped = settings.keep === :stages
    packs = taped && adapts(m) ? packed(m.tableau, y0, field) : nothing
    step = packs !== nothing ? packs.step : taped ? empty_step(m.tableau, y0) : Step(m.tableau, y0)
    rhs = RightHandSide(field, step.k, step.arguments, step.residuals, m.tableau.stages)
    kind = taped ? retired(m.tableau, y0, field, packs) : nothing
    new = StageRecorder(step, m.tableau, rhs, kind, packs, nothing, taped && packs === nothing, nothing)
    leave_tape!(new; carry = false)
    return new
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

recorder(::Implicit, settings, y0, field::Field) = IntegratorRecorder(similar(y0), RightHandSide(field))

function recorder(m::Rosenbrock, settings, y0::V, field::Field{V, T}) where {V, T}
    implicit = RosenbrockStep(m.tableau, y0, m.mass)
    explicit = m.explicit === nothing ? nothing : Step(m.explicit, y0)
    derivatives = field.tangents === nothing ? nothing : Derivatives(field, y0)
    return RosenbrockRecorder{V, T, typeof(implicit), typeof(explicit), typeof(derivatives)}(
        implicit, explicit, RightHandSide(field), derivatives, nothing
    )
end

"Looks for the zeros of conditions from the start of the solve on."
watch!(recorder::Union{StageRecorder, RosenbrockRecorder}, conditions::Conditions, rec) =
    recorder.watch = Watch(conditions, rec.times[1], rec.y0)
watch!(_, ::Nothing, _) = nothing

functions(recorder) = ODEFunction{true, FullSpecialize}(recorder.rhs)
functions(recorder::RosenbrockRecorder) = functions(recorder.rhs, recorder.derivatives, recorder.implicit.mass)
functions(rhs, ::Nothing, mass = I) = ODEFunction{true, FullSpecialize}(rhs; mass_matrix = matrix_of(mass))

function functions(rhs, derivatives::Derivatives, mass = I)
    jac(J, y, _, t) = by_state!(derivatives, J, y, t)
    tgrad(dT, y, _, t) = by_time!(derivatives, dT, y, t)
    return ODEFunction{true, FullSpecialize}(rhs; jac, tgrad, mass_matrix = matrix_of(mass))
end

functions(recorder::StochasticRecorder) = SDEFunction{true, FullSpecialize}(recorder.rhs, recorder.diffusion)

"Called before an attempt: notes which stage's slope is evaluated first."
function before_attempt!(recorder::StageRecorder)
    leave_tape!(recorder)
    recorder.rhs.slot[] = recorder.tableau.fsal ? 2 : 1
    return nothing
end
before_attempt!(recorder::SDERecorder) = recorder.rhs.slot[] = 1
before_attempt!(::Union{SchemeRecorder, IntegratorRecorder, RosenbrockRecorder}) = nothing

"Jacobians and factorisations of a solve."
counts(_, _) = 0, 0
counts(::IntegratorRecorder, integrator) = integrator.stats.njacs, integrator.stats.nw
counts(recorder::RosenbrockRecorder, integrator) =
    recorder.derivatives === nothing ? integrator.stats.njacs : recorder.derivatives.calls[], integrator.stats.nw

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
    recorder.tableau.fsal || return nothing
    expect_first_stage!(recorder, recorder.on_tape)
    return announce_jump!(integrator)
end
start_anew!(::Union{IntegratorRecorder, RosenbrockRecorder}, integrator) = announce_jump!(integrator)
start_anew!(::StochasticRecorder, _) = nothing

"As the integrator does behind a callback: the slope is then evaluated once more, and nothing is known of the Jacobian."
function announce_jump!(integrator)
    reeval_internals_due_to_modification!(integrator, false)
    return derivative_discontinuity!(integrator, true)
end

"Makes the recorder ready for a first stage, which the integrator evaluates before `before_attempt!` is called."
function expect_first_stage!(recorder::StageRecorder, on_tape)
    recorder.on_tape = on_tape
    leave_tape!(recorder; carry = false)
    recorder.rhs.slot[] = 1
    return recorder
end

"Releases the memory that the tape has not taken."
release!(recorder::StageRecorder) = recorder.on_tape || release!(recorder.step, 2)

function record_step!(rec::Recording, recorder::StageRecorder, integrator, t, h, t1)
    (; step, tableau) = recorder
    step.t, step.h, step.t1 = t, h, t1
    tableau.fsal || copyto!(step.y1, integrator.u)
    rec.settings.record && push!(rec.error, error_of(integrator))
    add_step!(rec, recorder)
    tableau.fsal && !recorder.on_tape && carry!(recorder)
    return rec
end

"Makes the last stage the first one, where the step's arrays remain."
function carry!(recorder::StageRecorder)
    (; step, tableau, packed) = recorder
    packed === nothing || return carry!(packed)
    copyto!(step.k[1], step.k[tableau.stages])
    return copyto!(step.arguments[1], step.arguments[tableau.stages])
end

"Adds the recorder's step, apart from its error; tells whether the stages of its interpolant were evaluated."
function add_step!(rec::Recording, recorder::StageRecorder)
    (; step, tableau, rhs, watch) = recorder
    (; t, h, t1) = step
    push_step!(rec, h, t1)
    tableau.pair && rec.settings.record && push!(rec.stiffness, stiffness_estimate(step, tableau))
    recorder.on_tape = keep!(rec, recorder)
    ready = Ref(false)
    # the slope at the end of a step of fixed size may be the next one's first, and go on the tape
    again = !adapts(rec.method) && rec.settings.keep === :stages
    interpolant!() = ready[] || (extra_stages!(step, tableau, rhs.field; keep = again); ready[] = true)
    inside(theta) = (interpolant!(); dense_output!(step.scratch, step, tableau, theta))
    pieces() = (interpolant!(); (step.arguments[1], step.k...))
    look_inside!(inside, pieces, rec, watch, t, h, t1, step.y1)
    return ready[]
end

"Looks for events in a step, keeps its `pieces()` where they are asked for, and saves the states `inside(theta)`."
function look_inside!(inside, pieces, rec::Recording, watch, t, h, t1, y1)
    found = watch === nothing ? nothing : crossing(time -> inside((time - t) / h), watch, accepted(rec), t, t1, y1)
    if rec.settings.dense || found !== nothing
        foreach(x -> push!(rec.pieces, copy(x)), pieces())
        push!(rec.piece_steps, accepted(rec))
    end
    if found !== nothing
        push!(rec.crossings, found)
        stops(watch.conditions, found) && (rec.status = :event)
    end
    return save_outputs!(inside, rec, t, h, t1, y1)
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
    push_step!(rec, h, t1)
    push!(rec.implicit, true)
    rec.settings.record && push!(rec.error, error_of(integrator))
    rec.settings.keep === :nothing || push!(rec.tape, copy(integrator.uprev))
    save_outputs!(rec, t, h, t1, integrator.u) do theta
        next = integrator.dt
        integrator.dt = h  # the interpolant measures theta in this
        ode_addsteps!(integrator)
        ode_interpolant!(recorder.scratch, theta, integrator, nothing, Val{0})
        integrator.dt = next
        recorder.scratch
    end
    return rec
end

function record_step!(rec::Recording{V}, recorder::RosenbrockRecorder, integrator, t, h, t1) where {V}
    cache, implicit = active(integrator.cache)
    step, tableau = implicit ? (recorder.implicit, rec.method.tableau) : (recorder.explicit, rec.method.explicit)
    step.t, step.h, step.t1 = t, h, t1
    copyto!(step.arguments[1], integrator.uprev)
    copyto!(step.y1, integrator.u)
    read_stages!(step, tableau, cache)
    push_step!(rec, h, t1)
    push!(rec.implicit, implicit)
    if rec.settings.record
        push!(rec.error, error_of(integrator))
        push!(rec.stiffness, stiffness_estimate(step, tableau))
    end
    rec.settings.keep === :nothing || push!(rec.tape, copyto!(acquire!(V, length(rec.y0)), integrator.uprev))
    inside(theta) = dense_output!(step.scratch, step, tableau, theta)
    function pieces()
        slopes = [scale_of(step) / h * k for k in step.k]
        return [[step.arguments[1]]; slopes; [zero(step.y1) for _ in (length(slopes) + 2):piece_count(rec.method)]]
    end
    look_inside!(inside, pieces, rec, recorder.watch, t, h, t1, step.y1)
    return rec
end

"The cache of the method that made the last attempt, and whether that is an implicit one."
active(cache::CompositeCache) = cache.caches[cache.current], cache.current == 2
active(cache) = cache, true

"Copies what the integrator has left of the stages, and the Jacobian."
function read_stages!(step::RosenbrockStep, tableau, cache)
    k, scaled = step.k, step.h * tableau.gamma
    copyto!(step.jacobian, cache.J)
    if hasproperty(cache, :ks)
        foreach(copyto!, k, cache.ks)
    else  # those of Rosenbrock23 are slopes
        k₁, k₂, k₃ = cache.k₁, cache.k₂, cache.k₃
        @. k[1] = scaled * k₁
        @. k[2] = scaled * (k₂ - k₁)
        @. k[3] = scaled * (k₃ - (6 + sqrt(2)) * (k₂ - k₁) - 2 * k₁)
    end
    return step
end

"Likewise the slopes of tsit5, and the two arguments that its stiffness estimate needs."
function read_stages!(step::Step, tableau, cache)
    (; k, arguments, h) = step
    foreach(copyto!, k, (cache.k1, cache.k2, cache.k3, cache.k4, cache.k5, cache.k6, cache.k7))
    shifted!(arguments[6], arguments[1], k, view(tableau.a, 6, :), h, 5)
    return step
end
