# The matrix products of exported fields: `mul!`, but for a state of one sample.

const FEW_ROWS = 16  # of a matrix; for more, BLAS's product of matrices is the faster one

@inline product!(out, a, b) = mul!(out, a, b)
@inline product!(out, a, b, alpha, beta) = mul!(out, a, b, alpha, beta)

"The product of a transposed matrix of few rows and one column, two to three times as fast by that of a matrix and a vector."
@inline function product!(out::Matrix{T}, a::Transpose{T, Matrix{T}}, b::Matrix{T}) where {T}
    size(b, 2) == 1 && size(b, 1) <= FEW_ROWS || return mul!(out, a, b)
    mul!(view(out, :, 1), a, view(b, :, 1))
    return out
end
