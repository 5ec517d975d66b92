# Linear combinations and reductions over state arrays. The methods for `Vector` are plain loops that
# the compiler turns into SIMD code without temporaries; the generic ones serve other devices.

"""
    accumulate!(out, weights, terms, h, count = length(weights))

Adds `h * sum(weights[j] * terms[j])` over the first `count` terms to `out`, skipping zero weights.
"""
function accumulate!(out::AbstractVector{T}, weights, terms, h, count = length(weights)) where {T}
    # four terms in one pass over memory instead of four passes
    j = next_term(weights, 1, count)
    while j <= count
        j2 = next_term(weights, j + 1, count)
        if j2 > count
            add!(out, T(h * weights[j]), terms[j])
            break
        end
        j3 = next_term(weights, j2 + 1, count)
        if j3 > count
            add!(out, T(h * weights[j]), terms[j], T(h * weights[j2]), terms[j2])
            break
        end
        j4 = next_term(weights, j3 + 1, count)
        if j4 > count
            add!(out, T(h * weights[j]), terms[j], T(h * weights[j2]), terms[j2])
            add!(out, T(h * weights[j3]), terms[j3])
            break
        end
        add!(
            out, T(h * weights[j]), terms[j], T(h * weights[j2]), terms[j2],
            T(h * weights[j3]), terms[j3], T(h * weights[j4]), terms[j4]
        )
        j = next_term(weights, j4 + 1, count)
    end
    return out
end

function next_term(weights, j, count)
    while j <= count && weights[j] == 0
        j += 1
    end
    return j
end

"""
    add!(out, a, x, ...)

Adds `a * x`, for up to four pairs, to `out`.
"""
add!(out, a, x) = @. out = muladd(a, x, out)
add!(out, a, x, b, y) = @. out = muladd(b, y, muladd(a, x, out))
add!(out, a, x, b, y, c, z, d, w) = @. out = muladd(d, w, muladd(c, z, muladd(b, y, muladd(a, x, out))))

function add!(out::Vector{T}, a::T, x::Vector{T}) where {T}
    @inbounds @simd ivdep for i in eachindex(out, x)
        out[i] = muladd(a, x[i], out[i])
    end
    return out
end

function add!(out::Vector{T}, a::T, x::Vector{T}, b::T, y::Vector{T}) where {T}
    @inbounds @simd ivdep for i in eachindex(out, x, y)
        out[i] = muladd(b, y[i], muladd(a, x[i], out[i]))
    end
    return out
end

function add!(
        out::Vector{T}, a::T, x::Vector{T}, b::T, y::Vector{T}, c::T, z::Vector{T}, d::T, w::Vector{T}
    ) where {T}
    @inbounds @simd ivdep for i in eachindex(out, x, y, z, w)
        out[i] = muladd(d, w[i], muladd(c, z[i], muladd(b, y[i], muladd(a, x[i], out[i]))))
    end
    return out
end

"""
    shifted!(out, y, weights, terms, h, count = length(weights))

Sets `out = y + h * sum(weights[j] * terms[j])` over the first `count` terms.
"""
function shifted!(out, y, weights, terms, h, count = length(weights))
    copyto!(out, y)
    return accumulate!(out, weights, terms, h, count)
end

"""
    rms(x), rms_difference(x, y)

Root mean square of `x` (of `x - y`) over all entries; 0 for an empty array.
"""
rms(x) = isempty(x) ? 0.0 : sqrt(wide(sum(abs2, x)) / length(x))

# Estimates are double precision numbers whatever the state is.
wide(x) = x
wide(x::Float32) = Float64(x)

function rms_difference(x, y)
    isempty(x) && return 0.0
    return sqrt(wide(mapreduce((a, b) -> abs2(a - b), +, x, y)) / length(x))
end

function rms_difference(x::Vector{T}, y::Vector{T}) where {T}
    isempty(x) && return 0.0
    total = zero(T)
    @inbounds @simd for i in eachindex(x, y)
        total += abs2(x[i] - y[i])
    end
    return sqrt(wide(total) / length(x))
end

"""
    scaled!(r, raw, y, y1, rtol, atol)

Sets `r = raw / (atol + rtol * max(|y|, |y1|))` entrywise: an error over the tolerance.
"""
function scaled!(r, raw, y, y1, rtol, atol)
    T = eltype(r)
    rt, at = T(rtol), T(atol)
    @. r = raw / (at + rt * max(abs(y), abs(y1)))
    return r
end

"""
    scaled_pullback!(rawbar, ybar, y1bar, raw, y, y1, rtol, atol, scale)

Reverse of [`scaled!`](@ref) for the cotangent `scale * r` of `r`: sets `rawbar`, adds to `ybar` and
`y1bar` through the tolerance, which depends on the larger of the two states.
"""
function scaled_pullback!(rawbar, ybar, y1bar, raw, y, y1, rtol, atol, scale)
    T = eltype(raw)
    rt, at, s = T(rtol), T(atol), T(scale)
    # w: tolerance; r = raw / w; cotangent of r: s r; of raw: s r / w; of w: -s r^2 / w
    @. rawbar = s * raw / (at + rt * max(abs(y), abs(y1)))^2
    @. y1bar -= ifelse(abs(y1) >= abs(y), rt * sign(y1) * rawbar * raw / (at + rt * abs(y1)), zero(T))
    @. ybar -= ifelse(abs(y1) >= abs(y), zero(T), rt * sign(y) * rawbar * raw / (at + rt * abs(y)))
    return rawbar
end

function scaled_pullback!(
        rawbar::Vector{T}, ybar::Vector{T}, y1bar::Vector{T}, raw::Vector{T}, y::Vector{T}, y1::Vector{T},
        rtol, atol, scale
    ) where {T}
    rt, at, s = T(rtol), T(atol), T(scale)
    @inbounds @simd ivdep for i in eachindex(rawbar, ybar, y1bar, raw, y, y1)
        later = abs(y1[i]) >= abs(y[i])
        larger = ifelse(later, y1[i], y[i])
        inverse = one(T) / (at + rt * abs(larger))
        bar = s * raw[i] * inverse * inverse
        share = rt * sign(larger) * bar * raw[i] * inverse
        rawbar[i] = bar
        y1bar[i] -= ifelse(later, share, zero(T))
        ybar[i] -= ifelse(later, zero(T), share)
    end
    return rawbar
end
