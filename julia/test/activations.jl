using RegNDE: NaNMath, SpecialFunctions, TURNING, fast_atan, fast_cos, fast_erf, fast_exp, fast_expm1, fast_log, fast_log1p,
    fast_log2, fast_pow, fast_sigmoid, fast_sin, fast_tan, fast_tanh
using Test: @test, @testset

@testset "activations in $T" for T in (Float64, Float32)
    x = T.([range(-30, 30; length = 4001); exp10.(range(-20, 1; length = 501)); .-exp10.(range(-20, 1; length = 501))])
    x = filter(!=(0), x)
    relative(f, g, x = x) = maximum(abs.((f.(x) .- T.(g.(big.(x)))) ./ T.(g.(big.(x))))) / eps(T)
    @test relative(fast_tanh, tanh) < 4
    @test relative(fast_exp, exp) < 4
    @test relative(fast_expm1, expm1) < 4
    @test relative(fast_atan, atan) < 4
    @test relative(fast_erf, SpecialFunctions.erf) < 4
    positive = T.([exp10.(range(log10(floatmin(T)), log10(floatmax(T)) - 1; length = 2001)); range(1 / 2, 2; length = 2000)])
    @test relative(fast_log, log, positive) < 4
    @test relative(fast_log1p, log1p, [positive; .-positive[(eps(T) .< positive .< 1)]]) < 4
    turning = T.([range(-1000, 1000; length = 5001); exp10.(range(0, 14.9; length = 501))])
    @test relative(fast_sin, sin, filter(!=(0), turning)) < 4
    @test relative(fast_cos, cos, turning) < 4
    @test relative(fast_tan, tan, filter(!=(0), turning)) < 4
    @test relative(fast_log2, log2, positive) < 4
    @test fast_log2.(T(2) .^ (-20:20)) == -20:20
    y = 1 ./ (1 .+ exp.(-big.(x)))
    @test maximum(abs.(fast_sigmoid.(x) .- T.(1 ./ (1 .+ exp.(-big.(x)))))) < 2 * eps(T)
    @test fast_tanh.(T[Inf, -Inf, 0, 1.0e3]) == T[1, -1, 0, 1]
    @test fast_exp.(T[Inf, -Inf, 0, 800, -800]) == T[Inf, 0, 1, Inf, 0]
    @test fast_sigmoid.(T[Inf, -Inf, 0]) == T[1, 0, 1 / 2]
    for y in T[1 / 2, 3 / 2, -2.7, 3, 10.1, 1.0e-3]
        power = T.(exp10.(range(-3, 3; length = 1001)))
        @test relative(x -> fast_pow(x, y), x -> x^big(y), power) < 4
    end
    special = T[0, -0.0, 1, -1, 2, -2, 1 / 2, -1 / 2, Inf, -Inf, NaN]
    exponents = T[0, 1, -1, 2, -2, 3, -3, 1 / 2, -1 / 2, 3 / 2, NaN]
    @test all(((x, y),) -> isapprox(fast_pow(x, y), NaNMath.pow(x, y); nans = true), Iterators.product(special, exponents))
    @test fast_expm1.(T[Inf, -Inf, 0, 800, -800]) == T[Inf, -1, 0, Inf, -1]
    @test fast_log.(T[Inf, 0, 1]) == T[Inf, -Inf, 0]
    @test fast_log(nextfloat(zero(T))) ≈ log(nextfloat(zero(T)))
    @test fast_log1p.(T[Inf, -1, 0]) == T[Inf, -Inf, 0]
    @test fast_atan.(T[Inf, -Inf, 0]) == T[pi / 2, -pi / 2, 0]
    @test fast_erf.(T[Inf, -Inf, 0]) == T[1, -1, 0]
    @test fast_sin(zero(T)) == 0
    @test fast_cos(zero(T)) == 1
    fast = fast_tanh, fast_exp, fast_sigmoid, fast_expm1, fast_log, fast_log1p, fast_sin, fast_cos, fast_atan,
        fast_erf, fast_log2, fast_tan
    @test all(f -> isnan(f(T(NaN))), fast)
    @test all(isnan, (fast_log(T(-1)), fast_log1p(T(-2)), fast_sin(T(Inf)), fast_cos(T(-Inf)), fast_sin(2 * T(TURNING))))
end
