using Test: @testset

include("fields.jl")
include("replay.jl")

@testset "RegNDE" begin
    include("activations.jl")
    include("records.jl")
    include("gradients.jl")
    include("device.jl")
end
