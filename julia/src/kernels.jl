# Linear combinations over state arrays. FastBroadcast's `@..` is a plain SIMD loop over a `Vector`, and
# a broadcast over arrays of other devices.

"Adds `h * sum(weights[j] * terms[j])` over the first `count` terms to `out`, skipping zero weights."
function accumulate!(out::AbstractVector{T}, weights, terms, h, count = length(weights)) where {T}
    factor(j) = real(T)(h * weights[j])
    i = next_term(weights, 1, count)
    while i <= count
        # four terms in one pass over memory instead of four passes
        j = next_term(weights, i + 1, count)
        k = next_term(weights, j + 1, count)
        l = next_term(weights, k + 1, count)
        if l <= count
            add!(out, factor(i), terms[i], factor(j), terms[j], factor(k), terms[k], factor(l), terms[l])
            i = next_term(weights, l + 1, count)
        else
            add!(out, factor(i), terms[i])
            i = j
        end
    end
    return out
end

"The first index from `j` on of a weight that is not zero; beyond `count` if there is none."
function next_term(weights, j, count)
    while j <= count && weights[j] == 0
        j += 1
    end
    return j
end

"Adds `a * x`, for one pair or four, to `out`."
add!(out, a, x) = @.. out = muladd(a, x, out)
add!(out, a, x, b, y, c, z, d, w) = @.. out = muladd(d, w, muladd(c, z, muladd(b, y, muladd(a, x, out))))

"`x - y` entry by entry, as something to reduce: it has no memory."
difference(x, y) = instantiate(broadcasted(-, x, y))

"The type of the real numbers in an array, which may be complex."
realtype(x) = real(eltype(x))

"In double precision at least."
wide(x) = x
wide(x::Float32) = Float64(x)
wide(x::ComplexF32) = ComplexF64(x)

"A tolerance in the state's precision: a number, or an array like the state."
converted(::Type{T}, tolerance::Number) where {T} = T(tolerance)
converted(::Type{T}, tolerance::AbstractArray{T}) where {T} = tolerance
converted(::Type{T}, tolerance::AbstractArray) where {T} = T.(tolerance)
