module RegNDECUDAExt

using CUDA: CUDA, CuArray
using DLPack: kDLCUDA
using RegNDE: RegNDE

RegNDE.use_device(::Val{kDLCUDA}, device) = CUDA.device!(Int(device))

# CUDA.jl queues on a stream of its own task, torch on its current one, and neither waits for the other.
# Python waits for torch's before it calls; here the call waits for ours.
RegNDE.synchronize(::CuArray) = CUDA.synchronize()

end
