module RegNDESciMLSensitivityExt

using ChainRulesCore: ChainRulesCore, NoTangent
using LinearAlgebra: norm
using RegNDE: RegNDE, Field, Settings, evaluate!, vjp!
using SciMLBase: FullSpecialize, ODEFunction, ODEProblem, remake, solve, successful_retcode
using SciMLSensitivity: BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint, QuadratureAdjoint,
    SensitivityADPassThrough, ZygoteVJP, adjoint_sensitivities
using Tracker: Tracker, TrackedArray, TrackedReal

"""
A field as SciMLSensitivity wants it: out of place, all parameters in one flat vector. The vector only
tells where the cotangent goes; the values are those that the field was made with.
"""
struct Flat{V, T, P}
    field::Field{V, T}
    pbar::P
end

function (flat::Flat)(u, p, t)
    return evaluate!(similar(u), flat.field, t, u)
end

"Cotangents of state and flat parameters."
function products(flat::Flat, u, t, ct)
    foreach(x -> fill!(x, 0), flat.pbar)
    ubar = vjp!(similar(u), flat.field, convert(typeof(u), ct), t, u)
    return ubar, reduce(vcat, map(vec, flat.pbar); init = similar(u, 0))
end

function ChainRulesCore.rrule(flat::Flat, u, p, t)
    back(ct) = (NoTangent(), products(flat, u, t, ChainRulesCore.unthunk(ct))..., NoTangent())
    return flat(u, p, t), back
end

(flat::Flat)(u::TrackedArray, p::TrackedArray, t) = Tracker.track(flat, u, p, t)

Tracker.@grad function (flat::Flat)(u, p, t)
    value = Tracker.data(u)
    time = Tracker.data(t)
    return flat(value, Tracker.data(p), time), ct -> (products(flat, value, time, Tracker.data(ct))..., nothing)
end

const ADJOINTS = Dict(
    "interpolating" => () -> InterpolatingAdjoint(autojacvec = ZygoteVJP()),
    "gauss" => () -> GaussAdjoint(autojacvec = ZygoteVJP()),
    "quadrature" => () -> QuadratureAdjoint(autojacvec = ZygoteVJP()),
    "backsolve" => () -> BacksolveAdjoint(autojacvec = ZygoteVJP()),
)

function RegNDE.adjoint!(y0bar, pbar, m, settings::Settings, dynamics, shape, y0, times, ysbar, name)
    scratch = map(p -> fill!(similar(p), 0), pbar)
    field = Field(dynamics, shape, typeof(y0); pbar = scratch)
    total = sum(length, pbar; init = 0)
    # without parameters, one that nothing depends on: the adjoints need a vector
    flat = Flat(field, total == 0 ? (similar(y0, 1),) : scratch)
    problem = ODEProblem(
        ODEFunction{false, FullSpecialize}(flat), copy(y0), (times[1], times[end]), zeros(eltype(y0), max(total, 1))
    )
    y0bar .= 0
    at, bars = merged(times, ysbar)
    if first(at) == times[1]  # the cotangent of the initial state itself
        y0bar .+= popfirst!(bars)
        popfirst!(at)
    end
    isempty(at) && return y0bar
    du, dp = name == "tracker" ? tracked(problem, m, settings, at, bars) :
        continuous(problem, m, settings, at, bars, ADJOINTS[name]())
    y0bar .+= vec(du)
    place = 0
    for part in pbar
        part .+= reshape(view(vec(dp), (place + 1):(place + length(part))), size(part))
        place += length(part)
    end
    return y0bar
end

"Distinct times and the sums of their cotangents."
function merged(times, ysbar)
    at, bars = Float64[], Vector{eltype(ysbar)}[]
    for i in eachindex(times)
        bar = ysbar[:, i]
        !isempty(at) && at[end] == times[i] ? (bars[end] .+= bar) : (push!(at, times[i]); push!(bars, bar))
    end
    return at, bars
end

function continuous(problem, m, settings, at, bars, sensealg)
    (; rtol, atol) = settings
    sol = solve(problem, m.algorithm; reltol = rtol, abstol = atol)
    successful_retcode(sol) || error("the solve that the adjoint goes back over stopped early: $(sol.retcode)")
    return adjoint_sensitivities(
        sol, m.algorithm; sensealg, t = at, dgdu_discrete = (out, u, p, t, i) -> copyto!(out, bars[i]),
        reltol = rtol, abstol = atol
    )
end

# Step sizes are decided by values: a norm that the tape does not see, and that does not see the tape.
plain_norm(x::AbstractArray, t) = norm(Tracker.data.(Tracker.data(x))) / sqrt(length(x))
plain_norm(x::Number, t) = abs(Tracker.data(x))

function tracked(problem, m, settings, at, bars)
    (; rtol, atol) = settings
    function loss(u0, p)
        sol = solve(
            remake(problem; u0, p), m.algorithm; reltol = rtol, abstol = atol, saveat = at, save_start = false,
            sensealg = SensitivityADPassThrough(), internalnorm = plain_norm
        )
        return sum(sum(bar .* u) for (bar, u) in zip(bars, sol.u))
    end
    return map(Tracker.data, Tracker.gradient(loss, problem.u0, problem.p))
end

end
