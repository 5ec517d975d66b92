# StochasticDiffEq's out-of-place code for one step, run in the precision of the state. Of Lamba's methods it is the code
# of record; as a whole solve it would be in the precision of the times.

"The drift as out-of-place code calls it, with the diffusion `g`; times other than the start are `t1`."
struct OutOfPlaceField{V, T, G}
    field::Field{V, T}
    t::Float64
    t1::Float64
    g::G
end

(f::OutOfPlaceField{V})(u, _, t) where {V} = slope_at(f, u, t)

function slope_at(f::OutOfPlaceField{V}, u, t) where {V}
    (; field) = f
    out = similar(u, eltype(V), length(u) * max(field.columns, 1))
    evaluate!(out, field, t == f.t ? f.t : f.t1, convert(V, u))
    return field.columns == 0 ? out : NoiseMatrix(out, field.columns, field.rows)
end

"What that code reads of an integrator, and where it writes the new state and the error."
mutable struct OutOfPlaceStep{T, V, I, F}
    const integrator::I
    const f::F
    const t::Float64
    const dt::T
    const sqdt::T
    const uprev::V
    u::Any
    error::Float64
end

function Base.getproperty(step::OutOfPlaceStep, name::Symbol)
    hasfield(OutOfPlaceStep, name) && return getfield(step, name)
    return getproperty(getfield(step, :integrator), name)
end

OrdinaryDiffEqCore.set_EEst!(step::OutOfPlaceStep, E) = step.error = E

"Makes the attempt of an integrator by the out-of-place code that has the cache `code`."
function attempt_out_of_place!(integrator, code, drift::Field, diffusion::Field)
    (; t, dt, uprev) = integrator
    T, t1 = eltype(uprev), t + dt
    g = OutOfPlaceField(diffusion, t, t1, nothing)
    f = OutOfPlaceField(drift, t, t1, g)
    step = OutOfPlaceStep(integrator, f, t, T(dt), T(integrator.sqdt), uprev, uprev, NaN)
    perform_step!(step, code)
    copyto!(integrator.u, step.u)
    set_EEst!(integrator, step.error)
    return nothing
end
