using FFTW: FFTW, fft, rfft
using RegNDE: RegNDE, pullback, solve_recorded
using Test: @test, @testset

@testset "Fourier transforms" begin
    for T in (Float32, Float64), n in (6, 7), dims in ((1,), (2,), (1, 3), (3, 1))
        x = randn(T, n, 4, 5)
        half = rfft(x, dims)
        out = similar(half)
        RegNDE.transform!(out, x, RegNDE.r2c_plan(similar(x), dims))
        @test out ≈ half
        kept, back = copy(half), similar(x)
        RegNDE.transform!(back, half, RegNDE.c2r_plan(similar(half), size(x, first(dims)), dims))
        @test back ≈ x .* prod(size(x)[collect(dims)])
        @test half == kept
        whole, z = similar(x, Complex{T}), Complex{T}.(x)
        RegNDE.transform!(whole, z, RegNDE.c2c_plan(similar(z), true, dims))
        @test whole ≈ fft(z, dims)
        again = similar(whole)
        RegNDE.transform!(again, whole, RegNDE.c2c_plan(similar(z), false, dims))
        @test again ≈ z .* prod(size(x)[collect(dims)])
    end
end

"z' = a z with the convention that a gradient is the derivative by the real part plus i times that by the imaginary one."
module Rotation

using RegNDE: Dynamics

value!(dy, t, y, p, _) = (dy .= p[1] .* y; nothing)
vjp!(ybar, pbar, ct, t, y, p, _) = (ybar .= conj(p[1]) .* ct; pbar[1] .+= sum(ct .* conj(y)); nothing)
dynamics(a) = Dynamics(value!, vjp!, ([a],), nothing)

end

@testset "complex states" begin
    a, u0, w = -0.3 + 2im, [1 + 0.5im, -2im, 0.3 + 0im], [1 - im, 0.5im, 2 + 0im]
    sol = solve_recorded(Rotation.dynamics(a), u0, [0.0, 1.0]; rtol = 1.0e-9, atol = 1.0e-9)
    @test sol.ys[:, 2] ≈ exp(a) * u0 rtol = 1.0e-7
    u0bar, (abar,) = pullback(sol; ys = [zero(w) w])
    @test u0bar ≈ conj(exp(a)) * w rtol = 1.0e-7
    @test only(abar) ≈ sum(w .* conj(exp(a) * u0)) rtol = 1.0e-7
    @test all(S -> isapprox(S, abs(a); rtol = 1.0e-5), sol.stiffness)

    # one step: the gradient of its error against differences of the parts
    error_of(u) = solve_recorded(Rotation.dynamics(a), u, [0.0, 0.1]; dt0 = 0.1, rtol = 1.0e3, atol = 1.0e3)
    ubar, _ = pullback(error_of(u0); error = [1.0e9])
    h = 1.0e-4
    for i in eachindex(u0), direction in (1, im)
        e = [j == i ? h * direction : 0im for j in eachindex(u0)]
        slope = 1.0e9 * (only(error_of(u0 + e).error) - only(error_of(u0 - e).error)) / 2h
        @test real(conj(ubar[i]) * direction) ≈ slope rtol = 1.0e-5 atol = 1.0e-5 * maximum(abs, ubar)
    end
end
