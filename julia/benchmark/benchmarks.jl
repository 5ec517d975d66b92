# Time per step of a solve and of its gradient, with and without records.
#
#   julia --project=julia/benchmark -e 'using Pkg; Pkg.develop(path="julia"); Pkg.instantiate()'
#   julia --project=julia/benchmark julia/benchmark/benchmarks.jl

using BenchmarkTools: @belapsed, BenchmarkTools
using FastBroadcast: @..
using LinearAlgebra: BLAS, mul!
using Random: Xoshiro, randn
using RegNDE: Dynamics, WithResiduals, fast_tanh, pullback, release!, solve_recorded

"u' = 2 W2 tanh(W1 u + b1) - u / 10, the `Network` of benchmarks/engine_fields.py."
function value!(dy, t, y, p, cache)
    W1, b1, W2 = p
    mul!(cache.z, W1, y)
    @.. cache.z = fast_tanh(cache.z + b1)
    mul!(dy, W2, cache.z)
    @.. dy = 2 * dy - y / 10
    return nothing
end

"The same, with the hidden layer in `residuals`, where the reverse finds it."
function keep!(dy, t, y, p, cache, residuals)
    W1, b1, W2 = p
    z = residuals[1]
    mul!(z, W1, y)
    @.. z = fast_tanh(z + b1)
    mul!(dy, W2, z)
    @.. dy = 2 * dy - y / 10
    return nothing
end

function back!(ybar, pbar, ct, t, y, p, cache, residuals)
    W1, _, W2 = p
    z, zbar = residuals[1], cache.zbar
    mul!(zbar, W2', ct)
    @.. zbar = 2 * zbar * (1 - z^2)
    mul!(pbar[1], zbar, y', true, true)
    sum!(pbar[2], zbar; init = false)
    mul!(pbar[3], ct, z', 2, true)
    mul!(ybar, W1', zbar)
    @.. ybar -= ct / 10
    return nothing
end

function vjp!(ybar, pbar, ct, t, y, p, cache)
    W1, b1, _ = p
    mul!(cache.z, W1, y)
    @.. cache.z = fast_tanh(cache.z + b1)
    return back!(ybar, pbar, ct, t, y, p, cache, (cache.z,))
end

function problem(T, batch, dim, hidden)
    rng = Xoshiro(0)
    p = (randn(rng, T, hidden, dim) ./ T(sqrt(dim)), randn(rng, T, hidden), randn(rng, T, dim, hidden) ./ T(sqrt(hidden)))
    cache = (z = zeros(T, hidden, batch), zbar = zeros(T, hidden, batch))
    u0 = randn(rng, T, dim, batch)
    return Dynamics(value!, vjp!, p, cache, WithResiduals(keep!, back!, ((hidden, batch),), u0)), u0
end

"The gradient; the memory of the steps then serves the next solve, as it does when Python asks."
function back(sol; bars...)
    gradients = pullback(sol; bars...)
    release!(sol.recording)
    return gradients
end

function report(label, T, batch, dim, hidden, tolerance, t_end)
    dynamics, u0 = problem(T, batch, dim, hidden)
    run(record, keep) =
        solve_recorded(dynamics, u0, [0.0, t_end]; rtol = tolerance, atol = tolerance, record, keep)
    sol = run(true, :stages)
    steps, ys = length(sol.t), ones(T, size(sol.ys))
    error = ones(steps)
    times = (
        @belapsed($run(false, :nothing)), @belapsed($run(true, :nothing)),
        @belapsed(back($run(false, :stages); ys = $ys)),
        @belapsed(back($run(true, :stages); ys = $ys, error = $error)),
    )
    return println(
        rpad("$label B=$batch $T", 28), join(lpad.(round.(1.0e6 .* times ./ steps; digits = 1), 12)), lpad(steps, 8)
    )
end

BenchmarkTools.DEFAULT_PARAMETERS.seconds = 1
BLAS.set_num_threads(1)
println("microseconds per step, one BLAS thread")
println(rpad("", 28), join(lpad.(("forward", "+records", "+gradient", "+both"), 12)), lpad("steps", 8))
report("2-50-2", Float64, 1, 2, 50, 1.0e-6, 20.0)
report("2-50-2", Float64, 20, 2, 50, 1.0e-6, 20.0)
report("4-32-4", Float64, 64, 4, 32, 1.0e-6, 20.0)
report("64-128-64", Float64, 128, 64, 128, 1.0e-6, 10.0)
report("784-100-784 (MNIST)", Float32, 512, 784, 100, 1.0e-4, 2.0)
