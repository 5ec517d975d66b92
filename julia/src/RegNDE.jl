"""
Solves of differential equations whose own steps are recorded and differentiable: OrdinaryDiffEq and
StochasticDiffEq step, this package reads their error and stiffness estimates and gives the exact
gradient of the discrete solution. The Julia half of the Python package `regnde`; usable alone through
[`solve_recorded`](@ref) and [`pullback`](@ref).
"""
module RegNDE

using ADTypes: AutoFiniteDiff
using Base: CoreLogging
using Base.Broadcast: broadcasted, instantiate
using DiffEqBase: DiffEqBase, DEVerbosity
using FastBroadcast: @.., FastBroadcast
using FunctionWrappers: FunctionWrapper
using LinearAlgebra: LinearAlgebra, BLAS, Hermitian, I, LowerTriangular, Transpose, UniformScaling, UnitLowerTriangular,
    UnitUpperTriangular, UpperTriangular, cholesky!, det, dot, eigen!, eigvals!, ldiv!, logabsdet, lu, lu!, mul!, opnorm, rank,
    rmul!
using NaNMath: NaNMath
using NNlib: NNlib
using OrdinaryDiffEqCore: CompositeCache, OrdinaryDiffEqCore, IController, PIController, PIDController, _loopfooter!, get_EEst,
    handle_tstop!, loopheader!, modify_dt_for_tstops!, ode_addsteps!, ode_interpolant!, perform_step!, set_EEst!,
    sync_controllers!
using OrdinaryDiffEqLowOrderRK: BS3, DP5, Heun
using OrdinaryDiffEqTsit5: Tsit5
using OrdinaryDiffEqVerner: Vern6, Vern6Tableau, Vern7, Vern8, Vern8Tableau, Vern9, Vern9ExtraStages,
    Vern9InterpolationCoefficients, Vern9Tableau
using SciMLBase: AbstractNoiseProcess, FullSpecialize, NoInit, ODEFunction, ODEProblem, ReturnCode,
    SDEFunction, SDEProblem, auto_dt_reset!, check_error!, derivative_discontinuity!, init,
    reeval_internals_due_to_modification!, reinit!
using SciMLLogging: SciMLLogging
using SpecialFunctions: SpecialFunctions
using TOML: TOML

export Dynamics, pullback, solve_recorded

include("stop_flag.jl")
include("kernels.jl")
include("rows.jl")
include("activations.jl")
include("indexing.jl")
include("products.jl")
include("linear_algebra.jl")
include("transforms.jl")
include("buffer_pool.jl")
include("convolution.jl")
include("noise_matrix.jl")
include("shapes.jl")
include("field.jl")
include("tableaux.jl")
include("verner.jl")
include("sde_tableaux.jl")
include("step.jl")
include("retired_steps.jl")
include("packed_steps.jl")
include("reverse.jl")
include("mass.jl")
include("rosenbrock_step.jl")
include("rosenbrock_reverse.jl")
include("sde_step.jl")
include("sde_reverse.jl")
include("sde_scheme.jl")
include("scheme_reverse.jl")
include("noise.jl")
include("methods.jl")
include("out_of_place.jl")
include("events.jl")
include("recording.jl")
include("forward.jl")
include("recorders.jl")
include("tape.jl")
include("restart.jl")
include("grid.jl")
include("pullback.jl")
include("local.jl")
include("api.jl")
include("compile.jl")
include("samples.jl")
include("arguments.jl")
include("bridge.jl")
include("bridge_samples.jl")
include("entries.jl")
include("rehearsal.jl")
include("precompile.jl")

end
