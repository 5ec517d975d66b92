# Elementwise functions that the compiler can turn into SIMD code: no branches, no tables, no calls.
# Base's are accurate to the last bit and scalar; from a hundred entries on, they are what a solve costs.

"""
    reduced(x) -> (power, p)

`exp(x) = power * (1 + p)` with x = n log(2) + r, |r| <= log(2)/2: `power` is 2^n, put together from
bits, and `p` Taylor's polynomial for `expm1(r)`.
"""
@inline function reduced(x::Float64)
    # adding and subtracting 1.5 * 2^52 rounds to an integer, whose bits lie at the low end
    shifted = muladd(x, 1.4426950408889634, 6.755399441055744e15)
    n = shifted - 6.755399441055744e15
    r = muladd(n, -1.9082149292705877e-10, muladd(n, -0.6931471803691238, x))
    p = evalpoly(
        r, (
            1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880, 1 / 3628800,
            1 / 39916800, 1 / 479001600, 1 / 6227020800,
        )
    ) * r
    return reinterpret(Float64, (reinterpret(Int64, shifted) + 1023) << 52), p
end

@inline function reduced(x::Float32)
    shifted = muladd(x, 1.442695f0, 1.2582912f7)
    n = shifted - 1.2582912f7
    r = muladd(n, -1.4286068f-6, muladd(n, -0.69314575195f0, x))
    p = evalpoly(r, (1.0f0, 1 / 2.0f0, 1 / 6.0f0, 1 / 24.0f0, 1 / 120.0f0, 1 / 720.0f0, 1 / 5040.0f0)) * r
    return reinterpret(Float32, (reinterpret(Int32, shifted) + Int32(127)) << 23), p
end

"`exp(x) - 1` to a few units in the last place, for |x| up to 40 (20 in single precision)."
@inline function fast_expm1(x::Union{Float32, Float64})
    power, p = reduced(x)
    return muladd(power, p, power - 1)
end

"`exp(x)` to a few units in the last place; 0 and infinity at the ends of the range."
@inline function fast_exp(x::Union{Float32, Float64})
    # the square of exp(x / 2), whose 2^n is an ordinary number for every x with a finite result
    power, p = reduced(exponent_range(x) / 2)
    half = muladd(power, p, power)
    return half * half
end
@inline fast_exp(x) = exp(x)

# Beyond these arguments the results below do not change any more, and 2^n stays an ordinary number.
@inline saturated(x::Float64) = clamp(x, -40.0, 40.0)
@inline saturated(x::Float32) = clamp(x, -20.0f0, 20.0f0)

# Wide enough that the square of exp(x / 2) is 0 or infinite beyond, narrow enough for 2^n of x / 2.
@inline exponent_range(x::Float64) = clamp(x, -760.0, 720.0)
@inline exponent_range(x::Float32) = clamp(x, -110.0f0, 90.0f0)

"Hyperbolic tangent, relative error a few units in the last place; NaN stays NaN."
@inline function fast_tanh(x::Union{Float32, Float64})
    e = fast_expm1(saturated(x + x))
    return e / (e + 2)
end
@inline fast_tanh(x) = tanh(x)

"Logistic function 1 / (1 + exp(-x)), absolute error a few units in the last place of 1."
@inline function fast_sigmoid(x::Union{Float32, Float64})
    e = fast_expm1(-abs(saturated(x)))
    positive = 1 / (e + 2)
    return ifelse(x < 0, (e + 1) * positive, positive)
end
@inline fast_sigmoid(x) = inv(one(x) + exp(-x))

# Numbers without their fractions. Those that the type does not hold, and NaN, become some number, as in torch.
@inline whole_Int64(x) = unsafe_trunc(Int64, x)
@inline whole_Int32(x) = unsafe_trunc(Int32, x)
@inline whole_UInt8(x) = unsafe_trunc(Int64, x) % UInt8

"log |Γ(x)|, as torch's `lgamma`."
log_gamma(x) = first(SpecialFunctions.logabsgamma(x))
