# The numbers of tableaux.toml are those that OrdinaryDiffEq and StochasticDiffEq step with, to the last bit but for
# c where those packages round row sums otherwise.

using LinearAlgebra: dot
using OrdinaryDiffEqCore: alg_stability_size
using OrdinaryDiffEqLowOrderRK: BS3ConstantCache, DP5ConstantCacheActual
using OrdinaryDiffEqRosenbrock: Rodas4Tableau, Rodas5PTableau
using OrdinaryDiffEqTsit5: Tsit5ConstantCacheActual, Tsit5Interp
using OrdinaryDiffEqVerner: Vern7ExtraStages, Vern7InterpolationCoefficients, Vern7Tableau
using RegNDE: COEFFICIENTS, NoiseTableau, RosenbrockTableau, TSIT5, Tableau, method, verner
using StochasticDiffEqHighOrder: SOSRI2, SOSRAConstantCache, SOSRI2ConstantCache, SOSRIConstantCache,
    StochasticDiffEqHighOrder, constructSRIW1
using Test: @test, @testset

const DP5_TABLEAU, BS3_TABLEAU, VERN7 = Tableau(:dp5), Tableau(:bs3), Tableau(:vern7)
const SOSRI_TABLEAU, SOSRI2_TABLEAU = NoiseTableau(:sosri), NoiseTableau(:sosri2)
const SOSRA_TABLEAU, SRIW1_TABLEAU = NoiseTableau(:sosra), NoiseTableau(:sriw1)

"The fields of a table in their order, which is that of rows from left to right without what is always zero."
function numbers(table, letter)
    names = filter(name -> occursin(Regex("^$letter\\d+\$"), String(name)), collect(fieldnames(typeof(table))))
    return [getfield(table, name) for name in names]
end

"Entries of the strictly lower triangle, row by row, without zeros."
rows_of(a, first, last) = filter(!iszero, [a[i, j] for i in first:last for j in 1:(i - 1)])

@testset "tableaux.toml has OrdinaryDiffEq's numbers" begin
    for (tableau, table) in (
            TSIT5 => Tsit5ConstantCacheActual(Float64, Float64), DP5_TABLEAU => DP5ConstantCacheActual(Float64, Float64),
            BS3_TABLEAU => BS3ConstantCache(Float64, Float64),
        )
        @test rows_of(tableau.a, 2, tableau.stages) == numbers(table, "a")
        @test filter(!iszero, tableau.btilde) == numbers(table, "btilde")
        c = numbers(table, "c") # c1 is the second stage's; bs3's table has none for the last
        @test tableau.c[2:(length(c) + 1)] == c
        @test tableau.b == tableau.a[tableau.stages, :]
    end

    interpolant = collect(Tsit5Interp(Float64)) # stage by stage; the first stage's linear term comes first
    ours = [x for i in 1:7 for x in TSIT5.dense[i, (i == 1 ? 1 : 2):4]]
    @test all(isapprox.(ours, interpolant; rtol = 4.0e-16)) # theirs has 0.13169999999999998 for 0.1317

    # dp5's correction of the cubic Hermite interpolant is the coefficient of theta^4
    @test filter(!iszero, DP5_TABLEAU.dense[:, 4]) == numbers(DP5ConstantCacheActual(Float64, Float64), "d")

    tables = Vern7Tableau(Float64, Float64), Vern7ExtraStages(Float64, Float64), Vern7InterpolationCoefficients(Float64)
    theirs = verner(10, 6, false, tables...)
    for field in (:a, :b, :btilde, :fsal, :pair)
        @test getfield(VERN7, field) == getfield(theirs, field)
    end
    @test VERN7.dense == theirs.dense[:, 1:7]
    @test all(iszero, theirs.dense[:, 8:9])
    @test VERN7.c[2:8] == numbers(tables[1], "c")
    @test VERN7.c ≈ theirs.c atol = 1.0e-13 # row sums there
    @test VERN7.c[9:11] == [1, 1, 1]

    for name in (:tsit5, :dp5, :vern7)
        (; algorithm, tableau) = method(name)
        @test COEFFICIENTS["ode"][String(name)]["stability_size"] == alg_stability_size(algorithm)
        @test tableau.pair
    end
    @test !haskey(COEFFICIENTS["ode"]["bs3"], "stability_size")
    @test !BS3_TABLEAU.pair
    @test [t.fsal for t in (TSIT5, DP5_TABLEAU, BS3_TABLEAU, VERN7)] == [true, true, true, false]

    heun = Tableau(:heun) # OrdinaryDiffEq has its numbers in the code of the step
    @test (heun.stages, heun.extra, heun.fsal, heun.pair) == (3, 0, true, true)
    @test heun.a == [0 0 0; 1 0 0; 0.5 0.5 0]
    @test (heun.b, heun.c, heun.btilde) == ([0.5, 0.5, 0], [0, 1, 1], [0.5, -0.5, 0])
end

@testset "tableaux.toml has OrdinaryDiffEqRosenbrock's numbers" begin
    for (name, table) in (:rodas4 => Rodas4Tableau(Float64, Float64), :rodas5p => Rodas5PTableau(Float64, Float64))
        ours = RosenbrockTableau(name)
        @test (ours.a, ours.gamma, ours.b, ours.btilde) == (table.A, table.gamma, table.b, table.btilde)
        @test ours.coupling[:, axes(table.C, 2)] == table.C
        @test (ours.c, ours.d) == (table.c, table.d)
        # theta y1 + theta (1 - theta) (h1 + theta (h2 + theta h3))
        theta, u = 0.3, collect(1.0:ours.stages)
        h = table.H * u
        theirs = theta * dot(table.b, u) + theta * (1 - theta) * evalpoly(theta, h)
        @test dot(ours.dense * theta .^ axes(ours.dense, 2), u) ≈ theirs rtol = 1.0e-12
    end
    @test [RosenbrockTableau(name).fsal for name in (:rosenbrock23, :rodas4, :rodas5p)] == [true, false, false]
end

@testset "tableaux.toml has StochasticDiffEq's numbers" begin
    for (tableau, table) in (
            SOSRI_TABLEAU => SOSRIConstantCache(Float64, Float64), SOSRI2_TABLEAU => SOSRI2ConstantCache(Float64, Float64),
        )
        for (field, letter) in (:A0 => "a0", :A1 => "a1", :B0 => "b0", :B1 => "b1")
            @test rows_of(getfield(tableau, field), 2, 4) == numbers(table, letter)
        end
        for (field, letter) in (:alpha => "α", :b1 => "beta1", :b2 => "beta2", :b3 => "beta3", :b4 => "beta4")
            @test getfield(tableau, field) == numbers(table, letter)
        end
        @test tableau.c0[2:4] ≈ numbers(table, "c0") rtol = 1.0e-14
        @test tableau.c1 ≈ numbers(table, "c1") rtol = 1.0e-14
        @test tableau.delta == 1
    end
    @test SOSRI2_TABLEAU.pair
    @test COEFFICIENTS["sde"]["sosri2"]["stability_size"] == StochasticDiffEqHighOrder.alg_stability_size(SOSRI2())
    @test !SOSRI_TABLEAU.pair

    table = SOSRAConstantCache(Float64, Float64)
    @test rows_of(SOSRA_TABLEAU.A0, 2, 3) == numbers(table, "a")
    @test rows_of(SOSRA_TABLEAU.B0, 2, 3) == numbers(table, "b")
    @test SOSRA_TABLEAU.alpha == numbers(table, "α")
    @test SOSRA_TABLEAU.b1 == numbers(table, "beta1")
    @test SOSRA_TABLEAU.b3 == numbers(table, "beta2")
    @test SOSRA_TABLEAU.c0[2:3] == numbers(table, "c0")
    @test SOSRA_TABLEAU.c1 == numbers(table, "c1")

    table = constructSRIW1()
    for (field, name) in (
            :A0 => :A₀, :B0 => :B₀, :B1 => :B₁, :c0 => :c₀, :c1 => :c₁, :alpha => :α, :b1 => :β₁, :b2 => :β₂, :b3 => :β₃,
            :b4 => :β₄,
        )
        @test getfield(SRIW1_TABLEAU, field) == getfield(table, name)
    end
    # the third drift there is the first one again, and so the method steps with that
    @test SRIW1_TABLEAU.A1[1:3, :] == table.A₁[1:3, :]
    @test SRIW1_TABLEAU.A1[4, :] == [table.A₁[4, 3], 0, 0, 0]
    @test SRIW1_TABLEAU.delta == 1 / 6
end
