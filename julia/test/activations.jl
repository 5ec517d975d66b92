using RegNDE: fast_exp, fast_sigmoid, fast_tanh
using Test: @test, @testset

@testset "activations in $T" for T in (Float64, Float32)
    x = T.([range(-30, 30; length = 4001); exp10.(range(-20, 1; length = 501)); .-exp10.(range(-20, 1; length = 501))])
    x = filter(!=(0), x)
    relative(f, g) = maximum(abs.((f.(x) .- T.(g.(big.(x)))) ./ T.(g.(big.(x))))) / eps(T)
    @test relative(fast_tanh, tanh) < 4
    @test relative(fast_exp, exp) < 4
    y = 1 ./ (1 .+ exp.(-big.(x)))
    @test maximum(abs.(fast_sigmoid.(x) .- T.(1 ./ (1 .+ exp.(-big.(x)))))) < 2 * eps(T)
    @test fast_tanh.(T[Inf, -Inf, 0, 1.0e3]) == T[1, -1, 0, 1]
    @test fast_exp.(T[Inf, -Inf, 0, 800, -800]) == T[Inf, 0, 1, Inf, 0]
    @test fast_sigmoid.(T[Inf, -Inf, 0]) == T[1, 0, 1 / 2]
    @test all(isnan, (fast_tanh(T(NaN)), fast_exp(T(NaN)), fast_sigmoid(T(NaN))))
end
