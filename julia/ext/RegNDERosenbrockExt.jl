module RegNDERosenbrockExt

using OrdinaryDiffEqRosenbrock: Rodas4, Rodas5P, Rosenbrock23
using OrdinaryDiffEqTsit5: AutoTsit5
using PrecompileTools: @compile_workload
using RegNDE: RegNDE, Rosenbrock, TSIT5, finite

const METHODS = Dict{Symbol, RegNDE.Method}(
    :rosenbrock23 => Rosenbrock(finite(Rosenbrock23), :rosenbrock23),
    :rodas4 => Rosenbrock(finite(Rodas4), :rodas4),
    :rodas5p => Rosenbrock(finite(Rodas5P), :rodas5p),
    :autotsit5 => Rosenbrock(AutoTsit5(finite(Rosenbrock23)), :rosenbrock23, TSIT5),
)

__init__() = (merge!(RegNDE.METHODS, METHODS); nothing)

@compile_workload begin
    __init__()
    RegNDE.rehearse(Float64, "rosenbrock23")
    RegNDE.rehearse(Float64, "rodas5p")
end

end
