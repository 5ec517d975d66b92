module RegNDEFFTWExt

using FFTW: FFTW, plan_bfft, plan_brfft, plan_fft, plan_rfft
using RegNDE: RegNDE, Transform

# arrays of later evaluations may lie anywhere; solves on the main thread can not wait for tasks
const OPTIONS = (; flags = FFTW.ESTIMATE | FFTW.UNALIGNED, num_threads = 1)

RegNDE.c2c_plan(x, forward, dims) = Transform((forward ? plan_fft : plan_bfft)(x, dims; OPTIONS...), nothing)
RegNDE.r2c_plan(x, dims) = Transform(plan_rfft(x, dims; OPTIONS...), nothing)
RegNDE.c2r_plan(x, size, dims) = Transform(plan_brfft(x, size, dims; OPTIONS...), similar(x))

end
