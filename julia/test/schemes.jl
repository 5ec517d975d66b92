# Methods for SDEs that are no tableaux, and diffusions that are matrices: StochasticDiffEq's own steps and estimates.

using DiffEqNoiseProcess: NoiseGrid
using LinearAlgebra: mul!
using OrdinaryDiffEqCore: get_EEst
using Random: Xoshiro, randn
using RegNDE: RegNDE, NoiseMatrix, PathNoise, local_step, pullback, reverse!, solve_recorded
using SciMLBase: SDEProblem, init, step!
using StochasticDiffEqHighOrder: SOSRA
using StochasticDiffEqLowOrder: EM, EulerHeun, LambaEM, LambaEulerHeun
using Test: @test, @testset

const KINDS = (
    (:em, Noise.multiplicative(), 0), (:em, Noise.matrix(), 3), (:rkmil, Noise.multiplicative(), 0),
    (:rkmil_stratonovich, Noise.multiplicative(), 0), (:lambaem, Noise.multiplicative(), 0), (:lambaem, Noise.matrix(), 3),
    (:lambaeulerheun, Noise.multiplicative(), 0), (:lambaeulerheun_matrix, Noise.matrix(), 3),
    (:eulerheun, Noise.multiplicative(), 0), (:eulerheun, Noise.matrix(), 3),
    (:midpoint_stratonovich, Noise.multiplicative(), 0), (:midpoint_stratonovich, Noise.matrix(), 3),
    (:diffusionheun, Noise.multiplicative(), 0), (:diffusionheun, Noise.matrix(), 3),
    (:sosra_matrix, Noise.additive_matrix(), 3),
)

"A path whose increments depend on the interval alone."
wave(w, z, s, t) = (w .= sqrt(t - s) .* sin.(3 .* eachindex(w) .+ 40t); z .= sqrt(t - s) .* cos.(eachindex(z) .+ 50s); nothing)

options(method) = RegNDE.adapts(RegNDE.method(method)) ? (; dt0 = 0.04, rtol = 0.3, atol = 0.3) : (; dt0 = 0.06)

@testset "discrete gradient of $method, $columns columns" for (method, noise, columns) in KINDS
    rng = Xoshiro(2)
    p, u0 = Net.parameters(rng, 2, 4), randn(rng, 2, 3)
    path = PathNoise(wave, 0.0, 1.0, zeros(columns == 0 ? 6 : 3columns))
    sol = solve_recorded(
        (Net.dynamics(p), noise), u0, [0.0, 0.13, 0.5, 0.77, 1.0]; method, columns, noise = path, options(method)...
    )
    @test sol.status === :success
    again = replay(sol.recording, Net.dynamics(p), noise, size(u0), vec(u0); columns)
    @test again.ys ≈ reshape(sol.ys, 6, :) rtol = 1.0e-11
    @test again.error ≈ sol.error rtol = 1.0e-9
    @test length(sol.error) == (RegNDE.adapts(sol.recording.method) ? length(sol.t) : 0)
    Y, E = randn(rng, size(sol.ys)), randn(rng, length(sol.error))
    function loss(u, q...)
        changed = RegNDE.Dynamics(noise.f, noise.vjp, q[5:end], nothing)
        r = replay(sol.recording, Net.dynamics(q[1:4]), changed, size(u), vec(u); columns)
        return sum(vec(Y) .* vec(r.ys)) + sum(E .* r.error)
    end
    u0bar, (pbar, qbar) = pullback(sol; ys = Y, error = isempty(E) ? nothing : E)
    @test against_differences(loss, (u0, p..., noise.p...), (u0bar, pbar..., qbar...)) < 1.0e-6
end

@testset "StochasticDiffEq's own solve with a dense matrix: $method" for (method, algorithm, noise) in (
        (:em, EM(false), Noise.matrix()), (:eulerheun, EulerHeun(), Noise.matrix()), (:lambaem, LambaEM(), Noise.matrix()),
        (:sosra_matrix, SOSRA(), Noise.additive_matrix()),
    )
    rng = Xoshiro(2)
    p, u0, m = Net.parameters(rng, 2, 4), randn(rng, 2, 3), 3
    drift(u, _, t) = (dy = zeros(2, 3); Net.value!(dy, t, reshape(u, 2, 3), p, nothing); vec(dy))
    function diffusion(u, _, t)
        g, dense = zeros(m, 2, 3), zeros(6, 3m)
        noise.f(g, t, reshape(u, 2, 3), noise.p, nothing)
        for b in 1:3, i in 1:2, j in 1:m
            dense[i + 2(b - 1), j + m * (b - 1)] = g[j, i, b]
        end
        return dense
    end
    ours = solve_recorded(
        (Net.dynamics(p), noise), u0, [0.0, 1.0]; method, columns = m, noise = PathNoise(wave, 0.0, 1.0, zeros(3m)),
        options(method)...
    )
    @test length(ours.t) > 2
    y, t = vec(copy(u0)), 0.0
    for (n, t1) in enumerate(ours.t) # step by step, each from our state
        w, z = zeros(3m), zeros(3m)
        wave(w, z, t, t1)
        noises = NoiseGrid([t, t1], [zeros(3m), w], [zeros(3m), z])
        tolerances = RegNDE.adapts(RegNDE.method(method)) ? (; reltol = 0.3, abstol = 0.3) : (;)
        problem = SDEProblem(drift, diffusion, y, (t, t1); noise = noises, noise_rate_prototype = zeros(6, 3m))
        integrator = init(problem, algorithm; dt = t1 - t, tolerances...)
        step!(integrator)
        @test integrator.t ≈ t1
        isempty(ours.error) || @test get_EEst(integrator) ≈ ours.error[n] rtol = 1.0e-9
        y, t = copy(integrator.u), t1
    end
    @test y ≈ vec(ours.ys[:, :, 2]) rtol = 1.0e-10
end

@testset "a matrix of blocks is the dense one" begin
    entries, w, v = randn(Xoshiro(1), 3 * 2 * 4), randn(Xoshiro(2), 12), randn(Xoshiro(3), 8)
    A = NoiseMatrix(entries, 3, 2)
    dense = Matrix(A)
    @test size(A) == (8, 12)
    @test [A[1, 1], A[1, 3], A[2, 1], A[3, 4], A[1, 4]] == [entries[1], entries[3], entries[4], entries[7], 0]
    @test A * w ≈ dense * w
    @test mul!(copy(v), A, w, 2.0, 0.5) ≈ 2 * (dense * w) + v / 2
    @test (A .- 2 .* A) isa NoiseMatrix
    @test ((A .- 3 .* A) ./ 2).entries ≈ -entries
    spread = reshape(repeat(reshape(v, 1, 2, 4), 3), :)
    @test (v .+ A).entries ≈ spread .+ entries
    @test max.(abs.(v .- A), 0.1).entries ≈ max.(abs.(spread .- entries), 0.1)
    B = zero(A)
    B .= 3 .* A
    @test B.entries ≈ 3 .* entries
    @test A.entries == entries
end

@testset "a local step of $method, $columns columns" for (method, noise, columns) in
        filter(kind -> RegNDE.adapts(RegNDE.method(kind[1])), KINDS)
    rng = Xoshiro(5)
    p, u0 = Net.parameters(rng, 2, 4), randn(rng, 2, 3)
    settings = RegNDE.Settings(; rtol = 0.3, atol = 0.3)
    function estimate(u, q...) # of a step that is made again with the same noise
        changed, V = RegNDE.Dynamics(noise.f, noise.vjp, q[5:end], nothing), typeof(vec(u))
        others = RegNDE.Field(Net.dynamics(q[1:4]), (2, 3), V), RegNDE.Field(changed, (2, 3), V; columns)
        m = RegNDE.method(method)
        step, scheme, _ = RegNDE.stochastic_step(m, vec(u), others...)
        dW, dZ = zeros(length(step.dW)), zeros(length(step.dW))
        wave(dW, dZ, 0.2, here.step.t1)
        RegNDE.recall!(step, RegNDE.taped(m, vec(u), (; dW, dZ)), scheme, others..., 0.2, here.step.h, here.step.t1)
        return RegNDE.stochastic_estimates!(step, scheme, 0.3, 0.3).error
    end
    pbars = map(zero, p), map(zero, noise.p)
    V = Vector{Float64}
    fields = RegNDE.Field(Net.dynamics(p), (2, 3), V; pbar = pbars[1]),
        RegNDE.Field(noise, (2, 3), V; pbar = pbars[2], columns)
    here = local_step(RegNDE.method(method), settings, fields, vec(u0), 0.2, 1.0, 0.1; noise = wave)
    @test 0.2 < here.step.t1 <= 0.3 + eps()
    @test here.error ≈ estimate(u0, p..., noise.p...)
    ybar = reshape(reverse!(zeros(6), here, fields, 1.0, 0.0), 2, 3)
    @test against_differences(estimate, (u0, p..., noise.p...), (ybar, pbars[1]..., pbars[2]...)) < 1.0e-6
    chosen = local_step(RegNDE.method(method), settings, fields, vec(u0), 0.2, 1.0; noise = wave)
    @test 0 < chosen.step.h <= 0.8
end

@testset "precision of the state: $method, $columns columns" for (method, noise, columns) in KINDS
    p, u0 = Net.parameters(Xoshiro(2), 2, 4), randn(Xoshiro(3), 2, 3)
    results = map((Float64, Float32)) do T
        other = RegNDE.Dynamics(noise.f, noise.vjp, map(x -> T.(x), noise.p), nothing)
        path = PathNoise(wave, 0.0, 0.3, zeros(T, columns == 0 ? 6 : 3columns))
        solve_recorded((Net.dynamics(map(x -> T.(x), p)), other), T.(u0), [0.0, 0.3]; method, columns, noise = path, options(method)...)
    end
    @test eltype(results[2].ys) == Float32
    @test length(results[1].t) == length(results[2].t)
    @test results[2].ys ≈ results[1].ys rtol = 1.0e-4
    @test results[2].error ≈ results[1].error rtol = 1.0e-2
end
