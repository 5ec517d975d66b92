# Fourier transforms of exported fields, without a factor. FFTW's extension makes the plans.

"""
    c2c_plan(x, forward, dims), r2c_plan(x, dims), c2r_plan(x, size, dims)

Transforms of arrays like `x` along `dims`: of complex numbers forward or backward, of real numbers to half of their
spectrum, and back, where `size` is that of the result. Half is kept of the first of `dims`.
"""
function c2c_plan end
function r2c_plan end
function c2r_plan end

"A plan, and an array for its argument where the transform overwrites that, else `nothing`."
struct Transform{P, S}
    plan::P
    scratch::S
end

"Writes the transform of `x` to `out`."
transform!(out, x, transform::Transform{<:Any, Nothing}) = mul!(out, transform.plan, x)
transform!(out, x, (; plan, scratch)::Transform) = mul!(out, plan, copyto!(scratch, x))
