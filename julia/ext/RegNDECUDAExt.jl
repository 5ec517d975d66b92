module RegNDECUDAExt

using CUDA: CUDA, CuArray
using DLPack: kDLCUDA
using RegNDE: RegNDE

RegNDE.enter(::Val{kDLCUDA}, device) = CUDA.device!(Int(device))

# CUDA.jl queues on a stream of its own task, torch on its current one, and neither waits for the other.
# Python waits for torch's before it calls; here the call waits for ours.
RegNDE.finish(::CuArray) = CUDA.synchronize()

end
