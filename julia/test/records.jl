using LinearAlgebra: mul!
using Random: Xoshiro, randn
using RegNDE: RegNDE, Dynamics, Field, evaluate!, solve_recorded, stiffness_estimate, take_step!
using Test: @test, @test_throws, @testset

@testset "the integrator's estimates are ours: $method" for method in
        (:tsit5, :dp5, :bs3, :heun, :vern6, :vern7, :vern8, :vern9)
    rng = Xoshiro(4)
    p, u0 = Net.parameters(rng, 3, 6), randn(rng, 3, 2)
    sol = solve_recorded(Net.dynamics(p), u0, [0.0, 5.0]; method, rtol = 1.0e-5, atol = 1.0e-5)
    again = replay(sol.recording, Net.dynamics(p), size(u0), vec(u0))
    believable = sol.error .> 1.0e-4  # below, the estimate is a sum that cancels
    @test sum(believable) > 3
    @test again.error[believable] ≈ sol.error[believable] rtol = 1.0e-7
    @test again.stiffness ≈ sol.stiffness rtol = 1.0e-7
    @test all(<=(1), sol.error)
    @test sol.recording.first_error == sol.error[1]
    @test sol.t[end] == 5.0
    @test cumsum(sol.dt) ≈ sol.t rtol = 1.0e-12
    for keep in (:states, :nothing)
        same = solve_recorded(Net.dynamics(p), u0, [0.0, 5.0]; method, rtol = 1.0e-5, atol = 1.0e-5, keep)
        @test (same.t, same.error, same.stiffness) == (sol.t, sol.error, sol.stiffness)
    end
    bare = solve_recorded(Net.dynamics(p), u0, [0.0, 5.0]; method, rtol = 1.0e-5, atol = 1.0e-5, record = false)
    @test bare.recording.first_error == sol.error[1]
end

@testset "counts: $method" for (method, start, each) in ((:tsit5, 3, 6), (:bs3, 3, 3), (:heun, 3, 2), (:vern7, 2, 10))
    sol = solve_recorded(Net.dynamics(Net.parameters(Xoshiro(5), 2, 4)), ones(2, 3), [0.0, 4.0]; method)
    @test sol.nfe == start + each * (length(sol.t) + sol.rejected)
end

@testset "save points do not change the steps" begin
    dynamics = Net.dynamics(Net.parameters(Xoshiro(5), 2, 4))
    few = solve_recorded(dynamics, ones(2, 3), [0.0, 2.0])
    many = solve_recorded(dynamics, ones(2, 3), range(0.0, 2.0; length = 50))
    @test few.t == many.t
    @test few.error == many.error
    same = solve_recorded(dynamics, ones(2, 3), [1.0, 1.0])
    @test isempty(same.t)
    @test same.ys[:, :, 1] == same.ys[:, :, 2] == ones(2, 3)
end

@testset "implicit methods: $method" for method in (:rosenbrock23, :rodas5p, :trbdf2, :kencarp4, :autotsit5)
    vdp!(dy, t, y, p, _) = (dy .= (y[2], p[1][1] * (1 - y[1]^2) * y[2] - y[1]); nothing)
    stiff = Dynamics(vdp!, (args...) -> nothing, ([100.0],), nothing)
    sol = solve_recorded(stiff, [2.0, 0.0], [0.0, 0.5, 1.5]; method, rtol = 1.0e-6, atol = 1.0e-6, keep = :nothing)
    exact = solve_recorded(stiff, [2.0, 0.0], [0.0, 0.5, 1.5]; rtol = 1.0e-10, atol = 1.0e-10, keep = :nothing)
    @test sol.ys ≈ exact.ys rtol = 1.0e-4
    @test any(sol.implicit)
    @test length(sol.error) == length(sol.t)
    method === :autotsit5 && @test !all(sol.implicit)
end

@testset "failures" begin
    bad(f) = Dynamics((dy, t, y, p, _) -> (dy .= f.(t, y); nothing), (args...) -> nothing, (), nothing)
    @test solve_recorded(bad((t, y) -> NaN), [1.0], [0.0, 1.0]).status === :nonfinite
    late = solve_recorded(bad((t, y) -> t > 0.5 ? NaN : -y), [1.0], [0.0, 1.0])
    @test late.status === :nonfinite
    @test late.nfe < 200
    @test solve_recorded(bad((t, y) -> y^2), [1.0], [0.0, 2.0]).status !== :success
    @test solve_recorded(bad((t, y) -> -y), [1.0], [0.0, 50.0]; max_steps = 5).status === :steps
    @test_throws "no method" solve_recorded(bad((t, y) -> -y), [1.0], [0.0, 1.0]; method = :magic)
end

@testset "the reverse sweep allocates nothing that grows with the state" begin
    rng = Xoshiro(6)
    measured = map((500, 5000)) do batch # Julia keeps boxes of integers below 512, and of a length it may make one
        p, y = Net.parameters(rng, 2, 3), randn(rng, 2, batch)
        sol = solve_recorded(Dynamics((dy, t, y, p, _) -> (dy .= .-y; nothing),
            (x, q, ct, t, y, p, _) -> (x .= .-ct; nothing), (), nothing), y, [0.0, 1.0])
        step, rev = RegNDE.Step(RegNDE.TSIT5, vec(y)), RegNDE.Reverse(RegNDE.TSIT5, vec(y))
        step.h = step.t1 = 0.1
        field = Field(sol.dynamics[1], size(y), Vector{Float64}; pbar = ())
        foreach(k -> copyto!(k, vec(y)), (step.k..., step.arguments...))
        back() = RegNDE.reverse_step!(rev, step, RegNDE.TSIT5, field, 1.0e-6, 1.0e-6; Ebar = 1.0, Sbar = 1.0)
        back()
        @allocated back()
    end
    @test measured[1] == measured[2]
end

"What an evaluation and its vector-Jacobian product allocate; the residuals are in a list, as those of a step are."
allocated(field, dy, y, list) =
    (@allocated RegNDE.value!(dy, field, 0.5, y, list[1])), (@allocated RegNDE.vjp!(dy, field, y, 0.5, y, list[1]))

@testset "a field behind function pointers allocates nothing, for a state of size $size" for size in ((3,), (3, 2), (3, 2, 1))
    keep!(dy, t, y, p, _, residuals) = (dy .= t .* y; residuals[1] .= y; nothing)
    back!(ybar, pbar, ct, t, y, p, _, residuals) = (ybar .= t .* ct .* residuals[1]; nothing)
    y = ones(prod(size))
    with = RegNDE.WithResiduals(keep!, back!, (size,), ones(size))
    plain = Dynamics((dy, t, y, p, _) -> (dy .= t .* y; nothing), (x, q, ct, t, y, p, _) -> (x .= t .* ct; nothing), (), nothing, with)
    field = Field(plain, size, Vector{Float64}; pbar = ())
    for list in (Any[nothing], Any[RegNDE.residuals(field)])
        dy = similar(y)
        allocated(field, dy, y, list)
        @test allocated(field, dy, y, list) == (0, 0)
    end
end

@testset "flat arrays keep their memory under another shape, however many there are" begin
    shaper = RegNDE.Shaper((2, 3), Vector{Float64})
    arrays = [fill(float(i), 6) for i in 1:(4 * RegNDE.SHAPES)]
    for _ in 1:2, x in arrays
        shaped = shaper(x)
        @test size(shaped) == (2, 3)
        @test pointer(shaped) == pointer(x)
    end
end

@testset "packed or not, steps of $method have the gradient of steps taken again: batch of $batch" for method in
        (:tsit5, :bs3, :vern6, :vern8), batch in (1, 400)
    rng = Xoshiro(8)
    p, y = Net.parameters(rng, 2, 3), randn(rng, 2, batch)
    found = map((:stages, :states)) do keep
        sol = solve_recorded(Net.with_residuals(p, y), y, [0.0, 0.3, 1.0]; method, rtol = 1.0e-4, keep)
        stiffness = isempty(sol.stiffness) ? nothing : one.(sol.stiffness)
        sol, RegNDE.pullback(sol; ys = one.(sol.ys), error = one.(sol.error), stiffness)
    end
    (sol, (y0bar, pbar)), (_, (again, pbars)) = found
    @test all(entry -> isempty(entry.k) == (batch == 1), sol.recording.tape)
    @test y0bar ≈ again rtol = 1.0e-6 # an error estimate is a sum that cancels
    @test all(isapprox.(pbar, pbars; rtol = 1.0e-6))
end

@testset "the stiffness estimate does not depend on the state's units: $T, $unit" for (T, unit) in (
        (Float32, 1.0f-20), (Float32, 1.0f20), (Float32, 1.0f30), (Float64, 1.0e-170), (Float64, 1.0e160),
    )
    unit = T(2)^round(Int, log2(unit))  # a power of two changes no rounding
    A = T[-3 1; 0.5 -40]
    results = map((one(T), unit)) do scale
        y, step, rev = scale * T[1, -2], RegNDE.Step(RegNDE.TSIT5, zeros(T, 2)), RegNDE.Reverse(RegNDE.TSIT5, zeros(T, 2))
        field = Field(Dynamics((dy, t, y, p, _) -> (mul!(dy, A, y); nothing),
            (x, q, ct, t, y, p, _) -> (mul!(x, A', ct); nothing), (), nothing), (2,), Vector{T}; pbar = ())
        copyto!(step.arguments[1], y)
        evaluate!(step.k[1], field, 0.0, y)
        take_step!(step, RegNDE.TSIT5, field, 0.0, 0.02, 0.02)
        RegNDE.reverse_step!(rev, step, RegNDE.TSIT5, field, 1.0e-3, Float64(scale); Sbar = 1.0)
        RegNDE.reverse_first_stage!(rev, field, step)
        stiffness_estimate(step, RegNDE.TSIT5), rev.lam .* scale
    end
    @test results[1][1] ≈ results[2][1] rtol = 16 * eps(T)
    @test 30 < results[2][1] < 50
    @test results[1][2] ≈ results[2][2] rtol = 16 * eps(T)
    @test any(!=(0), results[2][2])
end

@testset "the root mean square of tiny, huge, equal and no entries" begin
    @test RegNDE.rms(fill(1.0e-200, 3)) ≈ 1.0e-200
    @test RegNDE.rms(fill(-1.0e200, 3)) ≈ 1.0e200
    @test RegNDE.rms(Float32[3.0f30, 4.0f30]) ≈ sqrt(12.5) * 1.0e30 rtol = 1.0e-6
    @test RegNDE.rms(zeros(3)) === RegNDE.rms(zeros(Float32, 3)) === 0.0
    @test RegNDE.rms(Float64[]) === 0.0
    @test isnan(RegNDE.rms([1.0, NaN]))
    y = randn(Xoshiro(1), 1000)
    @test RegNDE.rms(y) ≈ sqrt(sum(abs2, y) / 1000)
    @test RegNDE.stiffness_quotient(y, zero(y)) === 0.0
end
