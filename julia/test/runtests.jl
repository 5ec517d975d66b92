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
    include("control.jl")
    include("grid.jl")
    include("samples.jl")
    # Two more want packages that Pkg.test does not install, so that it runs from what the package itself needs:
    # to run them, `Pkg.add` those to the project that runs this file.
    for (package, file) in ("JLArrays" => "device.jl", "Aqua" => "quality.jl")
        if Base.find_package(package) === nothing
            @info "skipped: $file needs $package.jl, which this project has not"
        else
            include(file)
        end
    end
end
