# Broadcasts that stretch, along rows: what `@.` gives.

using RegNDE: @rows, largest!
using Random: Xoshiro, randn
using Test: @test, @testset

@testset "@rows of $T" for T in (Float32, Float64)
    rng = Xoshiro(1)
    y, v, w, g = randn(rng, T, 9, 4, 3), randn(rng, T, 1, 4, 3), randn(rng, T, 1, 1, 3), randn(rng, T, 9)
    number, entry, t = randn(rng, T, 1, 4), fill(T(2)), T(0.5)
    out, expected = zeros(T, 9, 4, 3), zeros(T, 9, 4, 3)
    @rows (v, w, number, entry) out = max((y * v) + (w - g), t)^2 / (number^2 + 1) + sqrt(entry)
    @. expected = max((y * v) + (w - g), t)^2 / (number^2 + 1) + sqrt(entry)
    @test out ≈ expected
    @rows (v,) out += y * v
    @. expected += y * v
    @test out ≈ expected
    @rows (v,) out -= ifelse(!(y <= 0), y, v)
    @. expected -= ifelse(!(y <= 0), y, v)
    @test out ≈ expected
    part, other = view(out, :, 2:3, :), view(expected, :, 2:3, :)
    turned = transpose(randn(rng, T, 2, 9))
    @rows (w,) part = turned * w
    @. other = turned * w
    @test out ≈ expected
    @rows () out = g
    @test out == repeat(g, 1, 4, 3)
    flat = reshape(view(out, :, :, 1), 36) # no array in memory of its own: Base's broadcast
    @rows () flat = t
    @test all(==(t), out[:, :, 1])
end

@testset "largest entries of $T" for T in (Float32, Float64)
    x = randn(Xoshiro(2), T, 7, 4, 3)
    for dims in (1, 2, (1, 2), (1, 3))
        @test largest!(zeros(T, (d in dims ? 1 : size(x, d) for d in 1:3)...), x) == maximum(x; dims)
    end
    x[2, 1, 1], x[3, 2, 1] = NaN, Inf
    @test isequal(largest!(zeros(T, 1, 4, 3), x), maximum(x; dims = 1))
end
