module RegNDEFFTWExt

using FFTW: FFTW, plan_bfft, plan_brfft, plan_fft, plan_rfft
using RegNDE: RegNDE, Transform

# arrays of later evaluations may lie anywhere
const FLAGS = FFTW.ESTIMATE | FFTW.UNALIGNED

RegNDE.c2c_plan(x, forward, dims) = Transform((forward ? plan_fft : plan_bfft)(x, dims; flags = FLAGS), nothing)
RegNDE.r2c_plan(x, dims) = Transform(plan_rfft(x, dims; flags = FLAGS), nothing)
RegNDE.c2r_plan(x, size, dims) = Transform(plan_brfft(x, size, dims; flags = FLAGS), similar(x))

end
