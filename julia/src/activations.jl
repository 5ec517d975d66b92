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

"`exp(x) - 1` to a few units in the last place, where 2^n is an ordinary number: for |x| up to 380 (45 in single precision)."
@inline function bounded_expm1(x::Union{Float32, Float64})
    power, p = reduced(x)
    return muladd(power, p, power - 1)
end

"`exp(x) - 1` to a few units in the last place."
@inline function fast_expm1(x::Union{Float32, Float64})
    half = bounded_expm1(exponent_range(x) / 2)
    return half * (half + 2)
end
@inline fast_expm1(x) = expm1(x)

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
    e = bounded_expm1(saturated(x + x))
    return e / (e + 2)
end
@inline fast_tanh(x) = tanh(x)

"Logistic function 1 / (1 + exp(-x)), absolute error a few units in the last place of 1."
@inline function fast_sigmoid(x::Union{Float32, Float64})
    e = bounded_expm1(-abs(saturated(x)))
    positive = 1 / (e + 2)
    return ifelse(x < 0, (e + 1) * positive, positive)
end
@inline fast_sigmoid(x) = inv(one(x) + exp(-x))

"""
    fraction_and_power(x) -> (f, n)

`x = (1 + f) * 2^n` for x > 0, with 1 + f between the roots of 1/2 and 2.
"""
@inline function fraction_and_power(x::Float64)
    small = x < floatmin(Float64)
    bits = reinterpret(Int64, ifelse(small, x * 1.8014398509481984e16, x))
    power = (bits - 0x3fe6a09e667f3bcd % Int64) >> 52  # the bits of the root of 1/2
    f = reinterpret(Float64, bits - (power << 52)) - 1
    n = reinterpret(Float64, power + 0x4338000000000000 % Int64) - 6.755399441055744e15  # as in `reduced`
    return f, n - ifelse(small, 54.0, 0.0)
end

@inline function fraction_and_power(x::Float32)
    small = x < floatmin(Float32)
    bits = reinterpret(Int32, ifelse(small, x * 3.3554432f7, x))
    power = (bits - 0x3f3504f3 % Int32) >> 23
    f = reinterpret(Float32, bits - (power << 23)) - 1
    n = reinterpret(Float32, power + 0x4b400000 % Int32) - 1.2582912f7
    return f, n - ifelse(small, 25.0f0, 0.0f0)
end

# In s = f / (2 + f), log(1 + f) = 2s + s^3 * 2/3 + s^5 * 2/5 + ...; of that these are the terms behind the first.
const LOG_TERMS = ntuple(k -> 2 / (2k + 1), 10)
const LOG_TERMS_32 = ntuple(k -> 2.0f0 / (2k + 1), 5)
@inline log_series(z::Float64) = z * evalpoly(z, LOG_TERMS)
@inline log_series(z::Float32) = z * evalpoly(z, LOG_TERMS_32)

# log(2) as a sum, of which n times the first part is exact
@inline log2_parts(::Type{Float64}) = 0.6931471803691238, 1.9082149292705877e-10
@inline log2_parts(::Type{Float32}) = 0.69314575195f0, 1.4286068f-6

"`log((1 + f) * 2^n) + rest`, `rest` being small."
@inline function joined_log(f::T, n::T, rest::T) where {T}
    s, half_square, (high, low) = f / (2 + f), f * f / 2, log2_parts(T)
    tail = muladd(s, half_square + log_series(s * s), muladd(n, low, rest))
    return n * high - ((half_square - tail) - f)
end

# what is not positive and finite has a logarithm of its own, and so has NaN
@inline proper_log(x::T, y) where {T} = ifelse(x > 0, ifelse(x < T(Inf), y, x), ifelse(x == 0, T(-Inf), T(NaN)))

"`log(x)` to a few units in the last place; NaN of negative numbers."
@inline function fast_log(x::T) where {T <: Union{Float32, Float64}}
    f, n = fraction_and_power(x)
    return proper_log(x, joined_log(f, n, zero(T)))
end
@inline fast_log(x) = log(x)

"The logarithm to base 2, exact for powers of 2; NaN of negative numbers."
@inline function fast_log2(x::T) where {T <: Union{Float32, Float64}}
    f, n = fraction_and_power(x)
    return proper_log(x, muladd(joined_log(f, zero(T), zero(T)), T(1.4426950408889634), n))
end
@inline fast_log2(x) = log2(x)

"`log(1 + x)` to a few units in the last place; NaN below -1."
@inline function fast_log1p(x::T) where {T <: Union{Float32, Float64}}
    u = 1 + x
    lost = ifelse(x > 1, 1 - (u - x), x - (u - 1))  # by that sum
    f, n = fraction_and_power(u)
    return proper_log(u, joined_log(f, n, lost / u))
end
@inline fast_log1p(x) = log1p(x)

"""
    split_log(x) -> (high, low)

`log(x)` for positive finite x as a sum, with some ten bits more than a number has.
"""
@inline function split_log(x::T) where {T}
    f, n = fraction_and_power(x)
    u, (high, low) = 2 + f, log2_parts(T)
    s = f / u
    rest = (fma(-s, u, f) - s * (f - (u - 2))) / u  # of f / (2 + f)
    whole = n * high
    total = whole + 2s
    tail = muladd(s, log_series(s * s), muladd(n, low, 2rest + (2s - (total - whole))))
    return total + tail, tail - ((total + tail) - total)
end

"`x^y` to a few units in the last place, as C's `pow`: NaN of negative numbers to fractions."
@inline function fast_pow(x::T, y::T) where {T <: Union{Float32, Float64}}
    size = abs(x)
    high, low = split_log(size)
    p = y * high
    power = fast_exp(p) * (1 + (fma(y, high, -p) + y * low))
    power = ifelse(size == 0, ifelse(y > 0, zero(T), T(Inf)), ifelse(size == T(Inf), ifelse(y > 0, T(Inf), zero(T)), power))
    odd, fraction = trunc(y / 2) != y / 2, trunc(y) != y
    of_negative = ifelse(fraction, ifelse((size == 0) | (size == T(Inf)), power, T(NaN)), ifelse(odd, -power, power))
    signed = ifelse(signbit(x), of_negative, power)
    return ifelse((y == 0) | (x == 1), one(T), ifelse(isnan(x) | isnan(y), T(NaN), signed))
end
@inline fast_pow(x, y) = NaNMath.pow(x, y)

"""
    quarter_turns(x) -> (r, n)

`x = r + n * pi/2`, |r| <= pi/4 to rounding, for |x| up to `TURNING`: the last bits of `n` are those of an integer.
"""
@inline function quarter_turns(x::Float64)
    shifted = muladd(x, 0.6366197723675814, 6.755399441055744e15)  # as in `reduced`
    n = shifted - 6.755399441055744e15
    # pi/2 as a sum of three numbers; the first difference is exact
    r = fma(-n, -1.4973849048591833e-33, fma(-n, 6.123233995736766e-17, fma(-n, 1.5707963267948966, x)))
    return r, reinterpret(Int64, shifted)
end

@inline function quarter_turns(x::Float32)
    r, n = quarter_turns(Float64(x))
    return Float32(r), n % Int32
end

"Up to where sines are computed: there neighbouring numbers are an eighth apart. They are NaN beyond."
const TURNING = 1.0e15

const SINE_TERMS = ntuple(k -> (-1.0)^k / factorial(2k + 1), 8)
const SINE_TERMS_32 = ntuple(k -> Float32(SINE_TERMS[k]), 5)
const COSINE_TERMS = ntuple(k -> (-1.0)^(k + 1) / factorial(2k + 2), 8)
const COSINE_TERMS_32 = ntuple(k -> Float32(COSINE_TERMS[k]), 5)
@inline near_sine(r::Float64) = muladd(r, r * r * evalpoly(r * r, SINE_TERMS), r)
@inline near_sine(r::Float32) = muladd(r, r * r * evalpoly(r * r, SINE_TERMS_32), r)
@inline near_cosine(r::Float64) = 1 - r * r * (0.5 - r * r * evalpoly(r * r, COSINE_TERMS))
@inline near_cosine(r::Float32) = 1 - r * r * (0.5f0 - r * r * evalpoly(r * r, COSINE_TERMS_32))

@inline function sine_from(r::T, n, x::T) where {T}
    y = ifelse(n & 1 == 0, near_sine(r), near_cosine(r))
    return ifelse(abs(x) <= T(TURNING), ifelse(n & 2 == 0, y, -y), T(NaN))
end

"`sin(x)` to a few units in the last place, up to [`TURNING`](@ref)."
@inline fast_sin(x::Union{Float32, Float64}) = sine_from(quarter_turns(x)..., x)
@inline fast_sin(x) = sin(x)

"`cos(x)`, likewise."
@inline function fast_cos(x::Union{Float32, Float64})
    r, n = quarter_turns(x)
    return sine_from(r, n + one(n), x)
end
@inline fast_cos(x) = cos(x)

"`tan(x)`, likewise."
@inline function fast_tan(x::T) where {T <: Union{Float32, Float64}}
    r, n = quarter_turns(x)
    s, c, even = near_sine(r), near_cosine(r), n & 1 == 0
    return ifelse(abs(x) <= T(TURNING), ifelse(even, s, -c) / ifelse(even, c, s), T(NaN))
end
@inline fast_tan(x) = tan(x)

const ARCTANGENT_TERMS = ntuple(k -> (-1.0)^k / (2k + 1), 20)
const ARCTANGENT_TERMS_32 = ntuple(k -> Float32(ARCTANGENT_TERMS[k]), 9)
@inline near_arctangent(u::Float64) = muladd(u, u * u * evalpoly(u * u, ARCTANGENT_TERMS), u)
@inline near_arctangent(u::Float32) = muladd(u, u * u * evalpoly(u * u, ARCTANGENT_TERMS_32), u)

"`atan(x)` to a few units in the last place."
@inline function fast_atan(x::T) where {T <: Union{Float32, Float64}}
    a = abs(x)
    steep = a > 1
    t = ifelse(steep, 1 / a, a)
    far = t > T(0.4142135623730951)  # the tangent of pi/8
    y = near_arctangent(ifelse(far, (t - 1) / (t + 1), t))
    y = ifelse(far, y + T(pi / 4), y)
    return copysign(ifelse(steep, T(pi / 2) - y, y), x)
end
@inline fast_atan(x) = atan(x)

const ERROR_TERMS = ntuple(k -> (-1.0)^k / (factorial(k) * (2k + 1)) * 2 / sqrt(pi), 18)
const ERROR_TERMS_32 = ntuple(k -> Float32(ERROR_TERMS[k]), 9)
@inline near_erf(x::Float64) = x * muladd(x * x, evalpoly(x * x, ERROR_TERMS), 1.1283791670955126)
@inline near_erf(x::Float32) = x * muladd(x * x, evalpoly(x * x, ERROR_TERMS_32), 1.1283792f0)

# `erfc(x) * exp(x^2)` from 1 to 6 (4): Chebyshev's interpolation in t, written in powers of t
@inline function scaled_erfc(x::Float64)
    t = (x - 3) / (x + 3)
    return evalpoly(
        t, (
            0.17900115118138996, -0.3262335600430372, 0.2456038017123348, -0.15011593650077573,
            0.07166583719748106, -0.024392499319120572, 0.004269136356484317, 0.0007077464722132616,
            -0.0005970624825455132, 4.525427584728947e-05, 6.406258506296106e-05, -1.284540656715812e-05,
            -8.008284150060674e-06, 2.0133155651736006e-06, 1.2714132955221688e-06,
        )
    )
end

@inline function scaled_erfc(x::Float32)
    t = (x - 2) / (x + 2)
    return evalpoly(
        t, (
            0.25539568f0, -0.42718585f0, 0.24165821f0, -0.078978473f0,
            0.0037321384f0, 0.0069939581f0, -0.00083657213f0, -0.00093954773f0,
        )
    )
end

# beyond, `erf` is 1 to rounding
@inline erf_range(::Type{Float64}) = 6.0
@inline erf_range(::Type{Float32}) = 4.0f0

"`erf(x)` to a few units in the last place."
@inline function fast_erf(x::T) where {T <: Union{Float32, Float64}}
    a = ifelse(abs(x) < erf_range(T), abs(x), erf_range(T))
    far = ifelse(a > 1, a, one(T))
    y = ifelse(a < 1, near_erf(a), 1 - fast_exp(-far * far) * scaled_erfc(far))
    return copysign(ifelse(isnan(x), x, y), x)
end
@inline fast_erf(x) = SpecialFunctions.erf(x)

# Numbers without their fractions. Those that the type does not hold, and NaN, become some number, as in torch.
@inline whole_Int64(x) = unsafe_trunc(Int64, x)
@inline whole_Int32(x) = unsafe_trunc(Int32, x)
@inline whole_UInt8(x) = unsafe_trunc(Int64, x) % UInt8

"log |Γ(x)|, as torch's `lgamma`."
log_gamma(x) = first(SpecialFunctions.logabsgamma(x))
