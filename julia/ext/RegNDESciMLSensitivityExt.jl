module RegNDESciMLSensitivityExt

using ChainRulesCore: ChainRulesCore, NoTangent
using LinearAlgebra: norm
using PrecompileTools: @compile_workload
using RegNDE: RegNDE, Field, Settings, evaluate!, vjp!
using SciMLBase: FullSpecialize, ODEFunction, ODEProblem, remake, solve, successful_retcode
using SciMLSensitivity: BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint, QuadratureAdjoint,
    SensitivityADPassThrough, ZygoteVJP, adjoint_sensitivities
using Tracker: Tracker, TrackedArray, TrackedReal

"""
A field as SciMLSensitivity wants it: out of place, all parameters in one flat vector. The vector only
tells where the cotangent goes; the values are those that the field was made with. Its type does not tell how
many parameters there are: an adjoint is compiled once for all fields.
"""
struct Flat{V, T}
    field::Field{V, T}
    pbar::Vector{AbstractArray{T}}
end

function (flat::Flat)(u, p, t)
    return evaluate!(similar(u), flat.field, t, u)
end

"Cotangents of state and flat parameters."
function products(flat::Flat, u, t, ct)
    foreach(x -> fill!(x, 0), flat.pbar)
    ubar = vjp!(similar(u), flat.field, convert(typeof(u), ct), t, u)
    return ubar, joined!(similar(u, sum(length, flat.pbar)), flat.pbar)
end

"Writes the entries of the arrays to a vector, one array after the other."
function joined!(vector, arrays)
    place = 0
    for x in arrays
        copyto!(vector, place + 1, x, 1, length(x))
        place += length(x)
    end
    return vector
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
    arrays = AbstractArray{eltype(y0)}[scratch...]
    # without parameters, one that nothing depends on: the adjoints need a vector
    sum(length, arrays; init = 0) == 0 && push!(arrays, similar(y0, 1))
    flat = Flat(Field(dynamics, shape, typeof(y0); pbar = scratch), arrays)
    total = gradient!(y0bar, flat, m.algorithm, (settings.rtol, settings.atol), y0, times, ysbar, name)
    place = 0
    for part in pbar
        part .+= reshape(view(total, (place + 1):(place + length(part))), size(part))
        place += length(part)
    end
    return y0bar
end

"Writes the initial state's cotangent; returns those of the parameters in one vector."
function gradient!(y0bar, flat::Flat, algorithm, tolerances, y0, times, ysbar, name)
    p = zeros(eltype(y0), sum(length, flat.pbar))
    times = eltype(y0).(times)  # out of place, OrdinaryDiffEq takes times of the state's precision alone
    problem = ODEProblem(ODEFunction{false, FullSpecialize}(flat), copy(y0), (times[1], times[end]), p)
    y0bar .= 0
    at, bars = merged(times, ysbar)
    if first(at) == times[1]  # the cotangent of the initial state itself
        y0bar .+= popfirst!(bars)
        popfirst!(at)
    end
    isempty(at) && return p
    du, dp = name == "tracker" ? tracked(problem, algorithm, tolerances, at, bars) :
        continuous(problem, algorithm, tolerances, at, bars, ADJOINTS[name]())
    y0bar .+= vec(du)
    return vec(dp)
end

"Distinct times and the sums of their cotangents."
function merged(times, ysbar)
    at, bars = eltype(times)[], Vector{eltype(ysbar)}[]
    for i in eachindex(times)
        bar = ysbar[:, i]
        !isempty(at) && at[end] == times[i] ? (bars[end] .+= bar) : (push!(at, times[i]); push!(bars, bar))
    end
    return at, bars
end

function continuous(problem, algorithm, (rtol, atol), at, bars, sensealg)
    sol = solve(problem, algorithm; reltol = rtol, abstol = atol)
    successful_retcode(sol) || error("the solve that the adjoint goes back over stopped early: $(sol.retcode)")
    return adjoint_sensitivities(
        sol, algorithm; sensealg, t = at, dgdu_discrete = (out, u, p, t, i) -> copyto!(out, bars[i]),
        reltol = rtol, abstol = atol
    )
end

# Step sizes are decided by values: a norm that the tape does not see, and that does not see the tape.
plain_norm(x::AbstractArray, t) = norm(Tracker.data.(Tracker.data(x))) / sqrt(length(x))
plain_norm(x::Number, t) = abs(Tracker.data(x))

function tracked(problem, algorithm, (rtol, atol), at, bars)
    function loss(u0, p)
        sol = solve(
            remake(problem; u0, p), algorithm; reltol = rtol, abstol = atol, saveat = at, save_start = false,
            sensealg = SensitivityADPassThrough(), internalnorm = plain_norm
        )
        return sum(sum(bar .* u) for (bar, u) in zip(bars, sol.u))
    end
    return map(Tracker.data, Tracker.gradient(loss, problem.u0, problem.p))
end

# The adjoints' own compilation is long: that of most users' first one is done with the package.
@compile_workload begin
    for name in ("interpolating", "gauss", "quadrature", "backsolve")
        RegNDE.rehearse(Float32, "tsit5"; adjoint = name)
        RegNDE.rehearse(Float64, "tsit5"; adjoint = name)
    end
end

end
