# Stops, step size controllers, bounds of the steps, tolerances of each entry.

using LinearAlgebra: mul!
using OrdinaryDiffEqCore: IController, PIController, PIDController
using Random: Random, Xoshiro, randn
using RegNDE: RegNDE, Dynamics, pullback, segments, solve_recorded
using Test: @test, @testset

"u' = -u before t = 1, 2 - u before 2.5, -5u after; notes the times that it is given."
module Switched

using RegNDE: Dynamics

const TIMES = Float64[]
slope(t, u) = t < 1 ? -u : t < 2.5 ? 2 - u : -5u
rate(t) = t < 2.5 ? -1 : -5
value!(dy, t, y, p, _) = (push!(TIMES, t); dy .= slope.(t, y); nothing)
vjp!(ybar, pbar, ct, t, y, p, _) = (push!(TIMES, t); ybar .= rate(t) .* ct; nothing)
dynamics() = Dynamics(value!, vjp!, (), nothing)

middle(t) = 2 + (exp(-1) - 2) * exp(1 - t)
exact(t) = t < 1 ? exp(-t) : t < 2.5 ? middle(t) : middle(2.5) * exp(-5 * (t - 2.5))

end

const EXPLICIT = (:tsit5, :dp5, :bs3, :heun, :vern6, :vern7, :vern8, :vern9)

@testset "stops: $method of $T, $direction" for (method, T, direction) in (
        ((m, Float64, :forward) for m in (EXPLICIT..., :rosenbrock23, :rodas5p, :trbdf2, :kencarp4, :autotsit5))...,
        (:tsit5, Float64, :backward), (:vern7, Float64, :backward), (:tsit5, Float32, :forward),
    )
    empty!(Switched.TIMES)
    ts = direction === :forward ? [0.0, 1.0, 2.0, 4.0] : [4.0, 2.5, 2.0, 0.0]
    explicit = method in EXPLICIT
    sol = solve_recorded(
        Switched.dynamics(), T[Switched.exact(ts[1])], ts; method, stops = [2.5, 1.0], rtol = 1.0e-5, atol = 1.0e-8,
        keep = explicit ? :stages : :nothing
    )
    @test sol.status === :success
    @test vec(sol.ys) ≈ Switched.exact.(ts) rtol = 5.0e-3
    @test issubset([1.0, 2.5], sol.t)
    explicit && pullback(sol; ys = ones(T, size(sol.ys)))
    @test isdisjoint(T[1, 2.5], Switched.TIMES)
    @test issubset([prevfloat(T(1)), nextfloat(T(1)), prevfloat(T(2.5)), nextfloat(T(2.5))], Switched.TIMES)
    # three evaluations choose the first step's size, one more follows each stop
    attempts = length(sol.t) + sol.rejected
    method in (:tsit5, :dp5, :bs3) && @test sol.nfe == 3 + (method === :bs3 ? 3 : 6) * attempts + 2
end

@testset "a stop at an end of the span is not evaluated at: $method" for method in (:tsit5, :vern7, :rosenbrock23)
    empty!(Switched.TIMES)
    sol = solve_recorded(Switched.dynamics(), [1.0], [1.0, 2.5]; method, stops = [1.0, 2.5, 7.0], keep = :nothing)
    @test sol.ys[1, 2] ≈ 2 - exp(-1.5) rtol = 1.0e-4
    @test extrema(Switched.TIMES) == (nextfloat(1.0), prevfloat(2.5))
end

@testset "segments" begin
    forward, backward = segments(Float32, 0.0, 1.0, [0.3, 0.3, 2.0]), segments(Float32, 1.0, 0.0, [0.3])
    below, above = Float64(prevfloat(0.3f0)), Float64(nextfloat(0.3f0))
    @test [(s.t_end, s.low, s.high) for s in forward] == [(0.3, -Inf, below), (1.0, above, Inf)]
    @test [(s.t_end, s.low, s.high) for s in backward] == [(0.3, above, Inf), (0.0, -Inf, below)]
end

"A field of `Net` that jumps at t = 0.3 and at 0.8."
function jumping(p)
    factor(t) = t < 0.3 ? 1.0 : t < 0.8 ? -2.0 : 0.5
    value!(dy, t, y, q, _) = (Net.value!(dy, t, y, q, nothing); dy .*= factor(t); nothing)
    vjp!(ybar, pbar, ct, t, y, q, _) = Net.vjp!(ybar, pbar, factor(t) .* ct, t, y, q, nothing)
    return Dynamics(value!, vjp!, p, nothing)
end

@testset "discrete gradient with stops and tolerances of each entry: $method, keep = $keep" for (method, keep) in (
        (:tsit5, :stages), (:tsit5, :states), (:bs3, :stages), (:vern7, :stages), (:vern7, :states),
    )
    rng = Xoshiro(1)
    p, u0 = Net.parameters(rng, 3, 5), randn(rng, 3, 4)
    sol = solve_recorded(
        jumping(p), u0, [0.0, 0.13, 0.3, 0.5, 1.0]; method, keep, stops = [0.3, 0.8], rtol = 1.0e-5,
        atol = 1.0e-5 .* (1:12)
    )
    again = replay(sol.recording, jumping(p), size(u0), vec(u0))
    @test again.ys ≈ reshape(sol.ys, 12, :) rtol = 1.0e-12
    believable = sol.error .> 1.0e-4
    @test again.error[believable] ≈ sol.error[believable] rtol = 1.0e-7
    Y, E = randn(rng, size(sol.ys)), randn(rng, length(sol.error)) ./ (1.0e-3 + maximum(sol.error))
    S = randn(rng, length(sol.stiffness))
    function loss(u, q...)
        r = replay(sol.recording, jumping(q), size(u), vec(u))
        return sum(vec(Y) .* vec(r.ys)) + sum(E .* r.error) + sum(S .* r.stiffness)
    end
    u0bar, pbar = pullback(sol; ys = Y, error = E, stiffness = isempty(S) ? nothing : S)
    @test against_differences(loss, (u0, p...), (u0bar, pbar...)) < 1.0e-6
    RegNDE.release!(sol.recording)
end

@testset "discrete gradient of $method with stops" for method in (:sosri, :sosra, :em)
    rng = Xoshiro(2)
    p, u0 = Net.parameters(rng, 2, 4), randn(rng, 2, 3)
    noise = method === :sosra ? Noise.additive() : Noise.multiplicative()
    sol = solve_recorded(
        (jumping(p), noise), u0, [0.0, 0.3, 0.5, 1.0]; method, stops = [0.3, 0.8], rtol = 1.0e-2, atol = 1.0e-2 .* ones(6),
        dt0 = method === :em ? 0.07 : NaN
    )
    @test issubset([0.3, 0.8], sol.t)
    again = replay(sol.recording, jumping(p), noise, size(u0), vec(u0))
    @test again.ys ≈ reshape(sol.ys, 6, :) rtol = 1.0e-11
    @test again.error ≈ sol.error rtol = 1.0e-9
    Y, E = randn(rng, size(sol.ys)), randn(rng, length(sol.error))
    function loss(u, q...)
        r = replay(sol.recording, jumping(q[1:4]), Dynamics(noise.f, noise.vjp, q[5:end], nothing), size(u), vec(u))
        return sum(vec(Y) .* vec(r.ys)) + sum(E .* r.error)
    end
    u0bar, (pbar, qbar) = pullback(sol; ys = Y, error = isempty(E) ? nothing : E)
    @test against_differences(loss, (u0, p..., noise.p...), (u0bar, pbar..., qbar...)) < 1.0e-6
end

@testset "a stop where nothing happens changes the states by less than the tolerance" begin
    p, u0 = Net.parameters(Xoshiro(5), 2, 4), ones(2, 3)
    plain = solve_recorded(Net.dynamics(p), u0, [0.0, 2.0])
    stopped = solve_recorded(Net.dynamics(p), u0, [0.0, 2.0]; stops = [0.7, 1.1])
    @test stopped.ys ≈ plain.ys rtol = 1.0e-4
    @test issubset([0.7, 1.1], stopped.t)
end

lotka_volterra() = Dynamics(
    (dy, t, y, p, _) -> (dy .= (1.5 * y[1] - y[1] * y[2], y[1] * y[2] - 3 * y[2]); nothing), (args...) -> nothing, (), nothing
)

@testset "controllers: $name" for (name, make, counts) in ( # counts: runs of OrdinaryDiffEqCore 4.6, reltol 1e-3
        ("default", nothing, nothing), ("PI", PIController, nothing), ("I", IController, (219, 27, 9)),
    )
    solve(controller) = solve_recorded(lotka_volterra(), [1.0, 1.0], [0.0, 10.0]; controller, rtol = 1.0e-3, atol = 1.0e-6)
    sol = solve(make === nothing ? nothing : algorithm -> make(Float64, algorithm))
    counts === nothing ? (@test sol.t == solve(nothing).t) : (@test (sol.nfe, length(sol.t), sol.rejected) == counts)
    named = solve(algorithm -> RegNDE.controller((name == "default" ? "PI" : name, fill(NaN, name == "I" ? 4 : 7)), algorithm))
    @test named.t == sol.t
end

@testset "a trial step that is not finite is a rejection under $name" for name in ("PI", "I", "PID")
    # the first step of size 1 leaves the domain of the square root
    root = Dynamics((dy, t, y, p, _) -> (dy .= map(x -> x < 0 ? NaN : -20 * sqrt(x) * x, y); nothing), (args...) -> nothing, (), nothing)
    constants = name == "PID" ? [0.7, -0.4, 0.0, 0.81] : fill(NaN, name == "I" ? 4 : 7)
    sol = solve_recorded(root, [1.0], [0.0, 1.0]; dt0 = 1.0, controller = a -> RegNDE.controller((name, constants), a))
    @test sol.status === :success
    @test sol.ys[1, 2] ≈ 1 / 121 rtol = 1.0e-3
    @test sol.rejected > 0
end

@testset "bounds of steps" begin
    solve(ts = [0.0, 10.0]; kwargs...) = solve_recorded(lotka_volterra(), [1.0, 1.0], ts; rtol = 1.0e-6, atol = 1.0e-6, kwargs...)
    for ts in ([0.0, 10.0], [10.0, 0.0])
        @test maximum(abs, solve(ts; dt_max = 0.05).dt) <= 0.05 * (1 + 1.0e-12)
    end
    @test minimum(solve().dt[1:(end - 1)]) < 0.06
    longer = solve(; dt_min = 0.06)
    @test longer.status === :success
    @test minimum(longer.dt[1:(end - 1)]) == 0.06
    @test solve(; dt_min = 0.06, stops = [0.001]).dt[1] == 0.001
    failed = solve(; dt_min = 0.5)
    @test failed.status === :underflow
    @test occursin("dt_min=0.5", failed.reason)
    @test minimum(abs, solve([10.0, 0.0]; dt_min = 0.06).dt[1:(end - 1)]) == 0.06
    @test solve(; dt0 = 1.0, dt_max = 0.01, stops = [5.0]).recording.dt_first == 0.01
end

@testset "tolerances of each entry: $method" for method in (:tsit5, :vern7, :trbdf2)
    solve(rtol, atol) =
        solve_recorded(lotka_volterra(), [1.0, 1.0], [0.0, 10.0]; method, rtol, atol, keep = :nothing)
    plain, equal, loose = solve(1.0e-4, 1.0e-6), solve([1.0e-4, 1.0e-4], [1.0e-6, 1.0e-6]), solve(1.0e-4, [1.0e-6, 1.0])
    @test equal.t == plain.t
    @test equal.error ≈ plain.error
    @test length(loose.t) < length(plain.t)
end

@testset "after a stop the step is as long as before: $name" for (name, constants) in (
        ("PI", nothing), ("PID", ("PID", [0.7, -0.4, 0.0, 0.81])),
    )
    decay = Dynamics((dy, t, y, p, _) -> (dy .= .-y; nothing), (args...) -> nothing, (), nothing)
    controller = constants === nothing ? nothing : Base.Fix1(RegNDE.controller, constants)
    solve(stops) = solve_recorded(decay, [1.0], [0.0, 4.0]; stops, controller, rtol = 1.0e-3, atol = 1.0e-3)
    free = solve(Float64[])
    cut = solve([free.t[3] + 1.0e-3])
    @test cut.dt[1:3] == free.dt[1:3]
    @test cut.dt[4] ≈ 1.0e-3
    @test cut.dt[5] ≈ free.dt[4]
end

@testset "cotangents of stops and of save times at stops: $method" for method in (:tsit5, :vern7)
    sol = solve_recorded(
        Switched.dynamics(), [1.0], [0.0, 1.0, 4.0]; method, stops = [1.0, 2.5], rtol = 1.0e-10, atol = 1.0e-12
    )
    rec, stopsbar, timesbar, Y = sol.recording, zeros(2), zeros(3), [0.0 0.0 1.0]
    field = RegNDE.Field(Switched.dynamics(), (1,), Vector{Float64}; pbar = ())
    y0bar = RegNDE.reverse!(zeros(1), rec, field, RegNDE.Cotangents(rec, Y, nothing, nothing; stops = stopsbar))
    # y(4) = (2 + (exp(-a) - 2) exp(a - b)) exp(5 b - 20) for stops a and b
    decay = exp(-5 * 1.5)
    @test stopsbar ≈ [-2 * exp(-1.5) * decay, (-(exp(-1) - 2) * exp(-1.5) + 5 * Switched.middle(2.5)) * decay] rtol = 1.0e-6
    RegNDE.reverse_times!(timesbar, rec, field, rec.ys, [0.0 1.0 0.0], zeros(1))
    @test timesbar ≈ [0, -exp(-1), 0] rtol = 1.0e-8
end
