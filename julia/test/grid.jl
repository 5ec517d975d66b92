# Methods of fixed step size, and events along them and along adaptive ones.

using Random: Xoshiro, randn
using RegNDE: RegNDE, Conditions, Dynamics, Field, Recording, Settings, forward!, pullback, solve_recorded
using Test: @test, @test_throws, @testset

const FIXED = (euler = 1, midpoint = 2, heun2 = 2, heun3 = 3, rk4 = 4, rk38 = 4)

"u'' = -u, as a Dynamics; the solution from (1, 0) is (cos t, -sin t)."
module Harmonic

using RegNDE: Dynamics

value!(dy, t, y, p, _) = (dy[1] = y[2]; dy[2] = -y[1]; nothing)
vjp!(ybar, pbar, ct, t, y, p, _) = (ybar[1] = -ct[2]; ybar[2] = ct[1]; nothing)
dynamics() = Dynamics(value!, vjp!, (), nothing)

end

@testset "order of $method" for (method, order) in pairs(FIXED)
    errors = map((1 / 16, 1 / 32)) do dt0
        sol = solve_recorded(Harmonic.dynamics(), [1.0, 0.0], [0.0, 2.0]; method, dt0)
        abs(sol.ys[1, 2] - cos(2))
    end
    @test abs(log2(errors[1] / errors[2]) - order) < 0.3
end

@testset "discrete gradient of $method, keep = $keep" for method in keys(FIXED), keep in (:stages, :states)
    rng = Xoshiro(1)
    p, u0 = Net.parameters(rng, 3, 5), randn(rng, 3, 4)
    for fields in ((Net.dynamics(p),), (Net.dynamics(p), Net.with_residuals(p, u0)))
        sol = solve_recorded(last(fields), u0, SAVE_AT; method, dt0 = 0.1, stops = [0.31], keep)
        @test 0.31 in sol.t
        @test isempty(sol.error)
        Y = randn(rng, size(sol.ys))
        loss(u, q...) = sum(vec(Y) .* vec(replay(sol.recording, Net.dynamics(q), size(u), vec(u)).ys))
        u0bar, pbar = pullback(sol; ys = Y)
        @test against_differences(loss, (u0, p...), (u0bar, pbar...)) < 1.0e-6
    end
end

@testset "evaluations of $method" for (method, stages) in (:euler => 1, :rk4 => 4)
    count(ts) = solve_recorded(Harmonic.dynamics(), [1.0, 0.0], ts; method, dt0 = 0.25).nfe
    @test count([0.0, 1.0]) == 4stages
    # an output in the second step evaluates the slope at its end, with which the third one begins
    @test count([0.0, 0.3, 1.0]) == 4stages
    @test count([0.0, 0.9, 1.0]) == 4stages + 1
end

@testset "steps of fixed size that do not reach the end" begin
    @test_throws ArgumentError solve_recorded(Harmonic.dynamics(), [1.0, 0.0], [0.0, 1.0]; method = :rk4)
    @test_throws ArgumentError solve_recorded(
        Harmonic.dynamics(), [1.0, 0.0], [0.0, 1.0]; method = :rk4, dt0 = 0.1, max_steps = 3
    )
    blows_up = Dynamics((dy, t, y, p, _) -> (dy .= y .^ 2 ./ (t < 0.5); nothing), nothing, (), nothing)
    sol = solve_recorded(blows_up, [1.0], [0.0, 0.2, 1.0]; method = :euler, dt0 = 0.25)
    @test sol.status === :nonfinite
    @test sol.t == [0.25, 0.5]
end

"A recording of the harmonic oscillator up to an event of its first entry."
function watched(method, direction, terminal; settings...)
    y0 = [1.0, 0.0]
    value!(dy, t, y, p, _) = (fill!(dy, y[1]); nothing)
    conditions = Conditions([Field(Dynamics(value!, nothing, (), nothing), (2,), Vector{Float64})], [direction], [terminal])
    rec = Recording(
        RegNDE.method(method), Settings(; rtol = 1.0e-8, atol = 1.0e-8, settings...), [0.0, 6.0], y0, zeros(2, 2)
    )
    return forward!(rec, Field(Harmonic.dynamics(), (2,), Vector{Float64}); conditions)
end

@testset "events of $method" for (method, settings) in (
        :tsit5 => (;), :vern7 => (;), :rk4 => (; grid = collect(0.25:0.25:6.0)),
    )
    for (direction, found) in (0 => [pi / 2, 3pi / 2], 1 => [3pi / 2], -1 => [pi / 2])
        rec = watched(method, direction, false; settings...)
        @test rec.status === :success
        @test rec.piece_steps == [here.step for here in rec.crossings]
        begins = [0.0; rec.t]
        @test length(found) == length(rec.crossings)
        @test all(begins[here.step] < t <= rec.t[here.step] for (here, t) in zip(rec.crossings, found))
        stopped = watched(method, direction, true; settings...)
        @test stopped.status === :event
        @test length(stopped.t) == rec.crossings[1].step
        @test length(stopped.pieces) == 1 + RegNDE.total(rec.method.tableau)
    end
end
