using Test: @testset

include("fields.jl")
include("replay.jl")

@testset "RegNDE" begin
    include("gradients.jl")
end
