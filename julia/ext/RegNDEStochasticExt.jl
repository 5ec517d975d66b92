module RegNDEStochasticExt

using DiffEqNoiseProcess: DiffEqNoiseProcess
using PrecompileTools: @compile_workload
using RegNDE: NoiseTableau, PathNoise, RegNDE, StochasticRungeKutta, StochasticScheme
using SciMLBase: AlgorithmInterpretation
using StochasticDiffEqHighOrder: SOSRA, SOSRI, SOSRI2, SRIW1
using StochasticDiffEqLowOrder: EM, EulerHeun, LambaEM, LambaEMConstantCache, LambaEulerHeun,
    LambaEulerHeunConstantCache, RKMil

const METHODS = Dict{Symbol, RegNDE.Method}(
    :sosri => StochasticRungeKutta(SOSRI(), NoiseTableau(:sosri)),
    :sosri2 => StochasticRungeKutta(SOSRI2(), NoiseTableau(:sosri2)),
    :sriw1 => StochasticRungeKutta(SRIW1(), NoiseTableau(:sriw1)),
    :sosra => StochasticRungeKutta(SOSRA(), NoiseTableau(:sosra)),
    :sosra_matrix => StochasticScheme(SOSRA(), :sosra_matrix),
    :em => StochasticScheme(EM(false), :em), # false: the diffusion at the step's start
    :eulerheun => StochasticScheme(EulerHeun(), :heun),
    :midpoint_stratonovich => StochasticScheme(EulerHeun(), :midpoint, :own),
    :diffusionheun => StochasticScheme(EulerHeun(), :diffusionheun, :own),
    :rkmil => StochasticScheme(RKMil(interpretation = AlgorithmInterpretation.Ito), :rkmil),
    :rkmil_stratonovich =>
        StochasticScheme(RKMil(interpretation = AlgorithmInterpretation.Stratonovich), :rkmil_stratonovich),
    # The in-place codes of Lamba's methods are other methods: another point of the diffusion, norms in the estimates.
    :lambaem => StochasticScheme(LambaEM(), :lambaem, LambaEMConstantCache()),
    :lambaeulerheun => StochasticScheme(LambaEulerHeun(), :lambaeulerheun, LambaEulerHeunConstantCache()),
    :lambaeulerheun_matrix => StochasticScheme(LambaEulerHeun(), :lambaeulerheun_matrix, :own),
)

__init__() = (merge!(RegNDE.METHODS, METHODS); nothing)

function DiffEqNoiseProcess.calculate_step!(noise::PathNoise, dt, u, p)
    s, t = noise.curt, noise.curt + dt
    for t_end in noise.ends # where the integrator will land
        abs(t - t_end) <= 100 * eps(max(abs(t), abs(t_end))) && (t = t_end)
    end
    noise.source(noise.dW, noise.dZ, s, t)
    noise.next, noise.dt = t, dt
    return nothing
end

DiffEqNoiseProcess.setup_next_step!(noise::PathNoise, u, p) =
    DiffEqNoiseProcess.calculate_step!(noise, noise.dt, u, p)

DiffEqNoiseProcess.reject_step!(noise::PathNoise, dtnew, u, p) =
    DiffEqNoiseProcess.calculate_step!(noise, dtnew, u, p)

function DiffEqNoiseProcess.accept_step!(noise::PathNoise, dt, u, p, setup_next = true)
    noise.curt, noise.dt = noise.next, dt
    setup_next && DiffEqNoiseProcess.calculate_step!(noise, dt, u, p)
    return nothing
end

DiffEqNoiseProcess.save_noise!(::PathNoise) = nothing

@compile_workload begin
    __init__()
    for T in (Float64, Float32), name in ("sosri", "sosri2", "sosra", "rkmil")
        RegNDE.rehearse(T, name)
    end
end

end
