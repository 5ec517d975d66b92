using DiffEqNoiseProcess: DiffEqNoiseProcess # with the two packages of StochasticDiffEq: the methods of SDEs
using OrdinaryDiffEqRosenbrock: OrdinaryDiffEqRosenbrock # rosenbrock23, rodas4, rodas5p and autotsit5
using OrdinaryDiffEqSDIRK: OrdinaryDiffEqSDIRK # trbdf2 and kencarp4
using StochasticDiffEqHighOrder: StochasticDiffEqHighOrder
using StochasticDiffEqLowOrder: StochasticDiffEqLowOrder
using Test: @testset

include("fields.jl")
include("replay.jl")

@testset "RegNDE" begin
    include("tableaux.jl")
    include("activations.jl")
    include("rows.jl")
    include("convolution.jl")
    include("records.jl")
    include("gradients.jl")
    include("complex.jl")
    include("schemes.jl")
    include("control.jl")
    include("grid.jl")
    include("samples.jl")
    include("device.jl")
    include("quality.jl")
end
