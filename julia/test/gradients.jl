using Random: Xoshiro, randn
using RegNDE: RegNDE, Dynamics, PathNoise, pullback, solve_recorded
using Test: @test, @test_throws, @testset

const SAVE_AT = [0.0, 0.13, 0.5, 0.5, 0.77, 1.0]

@testset "discrete gradient of $method, keep = $keep" for method in
        (:tsit5, :dp5, :bs3, :heun, :vern6, :vern7, :vern8, :vern9), keep in (:stages, :states)
    rng = Xoshiro(1)
    p, u0 = Net.parameters(rng, 3, 5), randn(rng, 3, 4)
    sol = solve_recorded(Net.dynamics(p), u0, SAVE_AT; method, rtol = 1.0e-5, atol = 1.0e-5, keep)
    again = replay(sol.recording, Net.dynamics(p), size(u0), vec(u0))
    @test again.ys ≈ reshape(sol.ys, 12, :) rtol = 1.0e-12
    # cotangents that none of the three quantities drowns in
    Y, E = randn(rng, size(sol.ys)), randn(rng, length(sol.error)) ./ (1.0e-3 + maximum(sol.error))
    S = randn(rng, length(sol.stiffness))
    function loss(u, q...)
        r = replay(sol.recording, Net.dynamics(q), size(u), vec(u))
        return sum(vec(Y) .* vec(r.ys)) + sum(E .* r.error) + sum(S .* r.stiffness)
    end
    u0bar, pbar = pullback(sol; ys = Y, error = E, stiffness = isempty(S) ? nothing : S)
    @test against_differences(loss, (u0, p...), (u0bar, pbar...)) < 1.0e-6
end

@testset "discrete gradient of $method" for method in (:sosri, :sosri2, :sriw1, :sosra, :em)
    rng = Xoshiro(2)
    p, u0 = Net.parameters(rng, 2, 4), randn(rng, 2, 3)
    noise = method === :sosra ? Noise.additive() : Noise.multiplicative()
    sol = solve_recorded(
        (Net.dynamics(p), noise), u0, SAVE_AT; method, rtol = 1.0e-2, atol = 1.0e-2,
        dt0 = method === :em ? 0.02 : NaN
    )
    @test sol.status === :success
    again = replay(sol.recording, Net.dynamics(p), noise, size(u0), vec(u0))
    @test again.ys ≈ reshape(sol.ys, 6, :) rtol = 1.0e-11
    @test again.error ≈ sol.error rtol = 1.0e-9
    @test again.stiffness ≈ sol.stiffness rtol = 1.0e-9
    Y, E, S = randn(rng, size(sol.ys)), randn(rng, length(sol.error)), randn(rng, length(sol.stiffness)) / 10
    function loss(u, q...)
        changed = Dynamics(noise.f, noise.vjp, q[5:end], nothing)
        r = replay(sol.recording, Net.dynamics(q[1:4]), changed, size(u), vec(u))
        return sum(vec(Y) .* vec(r.ys)) + sum(E .* r.error) + sum(S .* r.stiffness)
    end
    u0bar, (pbar, qbar) = pullback(
        sol; ys = Y, error = isempty(E) ? nothing : E, stiffness = isempty(S) ? nothing : S
    )
    @test against_differences(loss, (u0, p..., noise.p...), (u0bar, pbar..., qbar...)) < 1.0e-6
end

@testset "residuals change nothing: $method, keep = $keep" for method in
        (:tsit5, :bs3, :vern7, :sosri, :em), keep in (:stages, :states)
    rng = Xoshiro(7)
    p, u0 = Net.parameters(rng, 2, 4), randn(rng, 2, 3)
    results = map((Net.dynamics(p), Net.with_residuals(p, u0))) do drift
        stochastic = method in (:sosri, :em)
        noise = PathNoise((w, z, s, t) -> (w .= sqrt(t - s) / 2; z .= sqrt(t - s) / 3; nothing), 0.0, 1.0, vec(u0))
        sol = solve_recorded(
            stochastic ? (drift, Noise.multiplicative()) : drift, u0, SAVE_AT; method, rtol = 1.0e-3, atol = 1.0e-3,
            dt0 = method === :em ? 0.1 : NaN, keep, noise = stochastic ? noise : nothing
        )
        Y, E, S = ones(size(sol.ys)), ones(length(sol.error)), ones(length(sol.stiffness))
        u0bar, pbar = pullback(
            sol; ys = Y, error = isempty(E) ? nothing : E, stiffness = isempty(S) ? nothing : S
        )
        RegNDE.release!(sol.recording)
        (sol.ys, u0bar, (stochastic ? pbar[1] : pbar)...)
    end
    @test all(isapprox(a, b; rtol = 1.0e-12) for (a, b) in zip(results...))
end

@testset "arrays are released to the next solve: $method, $batch samples" for method in (:tsit5, :vern7, :rk4), batch in (10_000, 3)
    p, u0 = Net.parameters(Xoshiro(8), 2, 4), randn(Xoshiro(9), 2, batch)
    run() = solve_recorded(Net.with_residuals(p, u0), u0, [0.0, 0.3, 1.0]; method, stops = [0.5], dt0 = 0.1)
    bar(sol) = pullback(sol; ys = ones(size(sol.ys)), error = isempty(sol.error) ? nothing : ones(length(sol.error)))
    first = run()
    ys, before = copy(first.ys), RegNDE.POOL_BYTES[]
    expected = bar(run())
    RegNDE.release!(first.recording)
    @test RegNDE.POOL_BYTES[] >= before + 2 * 4 * length(first.t) * sizeof(u0)
    before = RegNDE.POOL_BYTES[]
    again, other = run(), run() # `other` has memory of its own
    @test RegNDE.POOL_BYTES[] < before
    @test again.ys == ys
    @test bar(again) == expected
    @test bar(other) == expected
    @test_throws ArgumentError bar(first)
end

@testset "the records of an implicit method have no gradient: $method" for method in (:trbdf2, :rosenbrock23)
    p = Net.parameters(Xoshiro(3), 2, 4)
    sol = solve_recorded(Net.dynamics(p), randn(2, 3), [0.0, 1.0]; method)
    @test_throws "implicit" pullback(sol; error = ones(length(sol.error)))
end

@testset "discrete gradient of $method between stops, keep = $keep" for method in
        (:rosenbrock23, :rodas4, :rodas5p, :autotsit5), keep in (:stages, :states)
    rng = Xoshiro(1)
    p, u0 = Net.parameters(rng, 2, 4), randn(rng, 2, 2)
    if method === :autotsit5  # stiff after a while
        p[1] .= [1 0; 0 1; 1 1; 1 -1]
        p[3] .= -300 .* p[1]'
    end
    sol = solve_recorded(
        Net.with_tangents(p), u0, SAVE_AT; method, rtol = 1.0e-4, atol = 1.0e-4, keep, stops = [0.4, 0.5], dt0 = 1.0e-3
    )
    @test sol.status === :success
    method === :autotsit5 && @test sol.implicit[[1, end]] == [false, true]
    again = replay(sol.recording, Net.with_tangents(p), size(u0), vec(u0))
    @test again.ys ≈ reshape(sol.ys, 4, :) rtol = 1.0e-11
    believable = sol.error .> 1.0e-4
    @test again.error[believable] ≈ sol.error[believable] rtol = 1.0e-7
    @test again.stiffness ≈ sol.stiffness rtol = 1.0e-9
    Y, E = randn(rng, size(sol.ys)), randn(rng, length(sol.error)) ./ (1.0e-3 + maximum(sol.error))
    S = randn(rng, length(sol.stiffness)) ./ maximum(sol.stiffness)
    function loss(u, q...)
        r = replay(sol.recording, Net.with_tangents(q), size(u), vec(u))
        return sum(vec(Y) .* vec(r.ys)) + sum(E .* r.error) + sum(S .* r.stiffness)
    end
    u0bar, pbar = pullback(sol; ys = Y, error = E, stiffness = S)
    @test against_differences(loss, (u0, p...), (u0bar, pbar...)) < 1.0e-6
end

@testset "the Jacobian is that of each step's start, though PID accepts errors above 1: $method" for method in
        (:rosenbrock23, :rodas4, :rodas5p)
    rng = Xoshiro(1)
    p, u0 = Net.parameters(rng, 2, 4), randn(rng, 2, 2)
    controller = Base.Fix1(RegNDE.controller, ("PID", [1.0, 0.0, 0.0, 0.3]))
    sol = solve_recorded(Net.with_tangents(p), u0, SAVE_AT; method, rtol = 1.0e-7, atol = 1.0e-7, controller, dt0 = 0.4)
    @test any(>(1), sol.error[1:(end - 1)])
    again = replay(sol.recording, Net.with_tangents(p), size(u0), vec(u0))
    @test again.ys ≈ reshape(sol.ys, 4, :) rtol = 1.0e-11
    @test again.stiffness ≈ sol.stiffness rtol = 1.0e-9
end
