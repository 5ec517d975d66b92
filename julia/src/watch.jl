# What is looked at in each accepted step: one watcher for each kind of method.

"The stages that an explicit method evaluates, noted on the way; `held`: the tape has their arrays."
mutable struct StageWatcher{V, T}
    const stages::Stages{V}
    const tableau::Tableau
    const rhs::RightHandSide{V, T}
    held::Bool
end

"Likewise the drifts of a stochastic method, and the increments of its noise."
struct NoiseWatcher{V, T}
    stages::NoiseStages{V}
    tableau::NoiseTableau
    rhs::RightHandSide{V, T}
    diffusion::RightHandSide{V, T}
end

"Reads estimates and interpolant of an integrator whose step is not described by a tableau here."
struct PlainWatcher{V, T}
    stages::Stages{V}
    scratch::V
    rhs::RightHandSide{V, T}
end

function watcher(m::RungeKutta, settings, y0, field::Field)
    stages = Stages(m.tableau, y0)
    settings.keep === :stages && keep_all!(stages, m.tableau, field)
    rhs = RightHandSide(field, stages.k, stages.g, stages.kept, m.tableau.stages)
    return StageWatcher(stages, m.tableau, rhs, false)
end

function watcher(m::StochasticRungeKutta, settings, y0, drift::Field, diffusion::Field)
    stages, n = NoiseStages(m.tableau, y0), m.tableau.drifts
    rhs = RightHandSide(drift, stages.k[1:n], stages.H0[1:n])
    return NoiseWatcher(stages, m.tableau, rhs, RightHandSide(diffusion))
end

watcher(::Implicit, settings, y0, field::Field) =
    PlainWatcher(Stages(TSIT5, y0), similar(y0), RightHandSide(field))

functions(watch) = ODEFunction{true, FullSpecialize}(watch.rhs)
functions(watch::NoiseWatcher) = SDEFunction{true, FullSpecialize}(watch.rhs, watch.diffusion)

"Called before a trial step: the first slope it will evaluate."
function expect!(watch::StageWatcher)
    watch.held && renew!(watch.stages, watch.tableau, watch.rhs.field)
    watch.held = false
    watch.rhs.slot[] = watch.tableau.fsal ? 2 : 1
    return nothing
end
expect!(watch::NoiseWatcher) = watch.rhs.slot[] = 1
expect!(::PlainWatcher) = nothing

"Gives away the memory that the tape has not taken."
release!(_) = nothing
release!(watch::StageWatcher) = watch.held || release!(watch.stages, 2)

function observe!(rec::Recording, watch::StageWatcher, integrator, t, h, t1)
    (; stages, tableau, rhs) = watch
    push_step!(rec, h, t1)
    tableau.fsal || copyto!(stages.y1, integrator.u)
    if rec.settings.record
        push!(rec.error, error_of(integrator))
        tableau.pair && push!(rec.stiffness, stiffness_estimate(stages, tableau))
    end
    watch.held = keep!(rec, stages, tableau)
    ready = false
    save_outputs!(rec, t, h, t1, integrator.u) do theta
        ready || extra_stages!(stages, tableau, rhs.field, t, h, t1)
        ready = true
        shifted!(stages.scratch, stages.g[1], dense_weights(tableau, theta), stages.k, h)
    end
    if tableau.fsal && !watch.held
        copyto!(stages.k[1], stages.k[tableau.stages])
        copyto!(stages.g[1], stages.g[tableau.stages])
    end
    return rec
end

"Keeps the step's stages themselves, or a copy of the state at its start; tells whether the stages are taken."
function keep!(rec::Recording{V}, stages::Stages, tableau) where {V}
    if rec.settings.keep === :stages
        push!(rec.tape, snapshot(stages, tableau))
        return true
    elseif rec.settings.keep === :states
        y = copyto!(take(V, length(rec.y0)), stages.g[1])
        push!(rec.tape, Stages(V[], [y], Any[], y, stages.scratch))
    end
    return false
end

"An array that begins with the state at the start of a step."
start_of(entry::Stages) = entry.g[1]
start_of(entry) = entry

"""
    release!(recording)

Gives the tape's memory away; the recording can not be gone back over any more.
"""
function release!(rec::Recording)
    for (i, entry) in enumerate(rec.tape)
        if entry isa Stages
            # an FSAL method's first stage is the last one of the step before
            release!(entry, i > 1 && entry.g[1] === rec.tape[i - 1].g[end] ? 2 : 1)
        else
            give(entry)
        end
    end
    empty!(rec.tape)
    return nothing
end

function observe!(rec::Recording, watch::NoiseWatcher, integrator, t, h, t1)
    (; stages, tableau) = watch
    push_step!(rec, h, t1)
    if rec.settings.record
        tableau.adaptive && push!(rec.error, error_of(integrator))
        tableau.pair && push!(rec.stiffness, stiffness_estimate(stages, tableau))
    end
    if rec.settings.keep !== :nothing
        n, noise = length(rec.y0), integrator.W
        chunk = fill!(similar(rec.y0, 3n), 0)
        copyto!(chunk, 1, integrator.uprev, 1, n)
        copyto!(chunk, 1 + n, noise.dW, 1, n)
        noise.dZ === nothing || copyto!(chunk, 1 + 2n, noise.dZ, 1, n)
        push!(rec.tape, chunk)
    end
    save_outputs!(rec, t, h, t1, integrator.u) do theta
        @. stages.raw = (1 - theta) * integrator.uprev + theta * integrator.u
        stages.raw
    end
    return rec
end

function observe!(rec::Recording, watch::PlainWatcher, integrator, t, h, t1)
    (; stages, scratch) = watch
    push_step!(rec, h, t1)
    switching = rec.method.name === :autotsit5
    implicit = !switching || integrator.cache.current == 2
    push!(rec.implicit, implicit)
    if rec.settings.record
        push!(rec.error, error_of(integrator))
        switching && push!(rec.stiffness, switching_stiffness!(stages, integrator, h, implicit))
    end
    rec.settings.keep === :nothing || push!(rec.tape, copy(integrator.uprev))
    save_outputs!(rec, t, h, t1, integrator.u) do theta
        next = integrator.dt
        integrator.dt = h  # the interpolant measures theta in this
        ode_addsteps!(integrator)
        ode_interpolant!(scratch, theta, integrator, nothing, Val{0})
        integrator.dt = next
        scratch
    end
    return rec
end

"While tsit5 is active its stages' quotient, else the norm of the Jacobian that the implicit method has."
function switching_stiffness!(stages::Stages, integrator, h, implicit)
    implicit && return Float64(integrator.eigen_est)
    cache = integrator.cache.caches[1]
    for (i, name) in enumerate((:k1, :k2, :k3, :k4, :k5, :k6, :k7))
        copyto!(stages.k[i], getproperty(cache, name))
    end
    copyto!(stages.g[1], integrator.uprev)
    copyto!(stages.y1, integrator.u)
    argument!(stages, TSIT5, h, 6)
    return stiffness_estimate(stages, TSIT5)
end
