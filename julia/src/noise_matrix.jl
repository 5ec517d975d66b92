# Noise that is not entrywise: a diffusion of shape (..., d, m), a matrix for each sample of the state.

"""
    NoiseMatrix(entries, columns, rows)

The diffusions of all samples as StochasticDiffEq takes them, one matrix with a block for each sample. `entries` is a
flat array of size (columns, rows, samples): the state has `rows` entries in a sample, the noise `columns`.
"""
struct NoiseMatrix{T, V <: AbstractVector{T}} <: AbstractMatrix{T}
    entries::V
    columns::Int
    rows::Int
end

blocks(A::NoiseMatrix) = reshape(A.entries, A.columns, A.rows, :)
NoiseMatrix(blocks::AbstractArray{<:Any, 3}) = NoiseMatrix(vec(blocks), size(blocks, 1), size(blocks, 2))

function Base.size(A::NoiseMatrix)
    samples = length(A.entries) ÷ (A.columns * A.rows)
    return A.rows * samples, A.columns * samples
end

function Base.getindex(A::NoiseMatrix, i::Int, j::Int)
    (sample, row), (other, column) = fldmod(i - 1, A.rows), fldmod(j - 1, A.columns)
    return sample == other ? blocks(A)[column + 1, row + 1, sample + 1] : zero(eltype(A))
end

Base.zero(A::NoiseMatrix) = NoiseMatrix(fill!(similar(A.entries), 0), A.columns, A.rows)
Base.copy(A::NoiseMatrix) = NoiseMatrix(copy(A.entries), A.columns, A.rows)

function LinearAlgebra.mul!(out::AbstractVector, A::NoiseMatrix, w::AbstractVector, alpha::Number, beta::Number)
    iszero(beta) ? fill!(out, 0) : rmul!(out, beta)
    return drive!(out, alpha, A.entries, w, A.columns, A.rows)
end

"""
    drive!(out, weight, g, w, columns, rows)

Adds `weight * g * w` to `out`: entry by entry where `columns` is 0, else each sample's matrix times its vector.
"""
function drive!(out::AbstractVector{T}, weight, g, w, columns, rows) where {T}
    a = T(weight)
    if columns == 0
        @.. out = muladd(a * g, w, out)
    else
        matrices, vectors = reshape(g, columns, rows, :), reshape(w, 1, columns, :)
        NNlib.batched_mul!(reshape(out, 1, rows, :), vectors, matrices, a, one(T))
    end
    return out
end

"Adds to `gbar` what the cotangent `v` of [`drive!`](@ref)'s result passes on to `g`."
function drive_pullback!(gbar::AbstractVector{T}, weight, v, w, columns, rows) where {T}
    a = T(weight)
    if columns == 0
        @.. gbar = muladd(a * v, w, gbar)
    else
        reshape(gbar, columns, rows, :) .+= a .* reshape(w, columns, 1, :) .* reshape(v, 1, rows, :)
    end
    return gbar
end

# Entrywise arithmetic is that of the blocks; a vector of the state's size is the same in every column.

struct BlockStyle <: Broadcast.BroadcastStyle end
Base.BroadcastStyle(::Type{<:NoiseMatrix}) = BlockStyle()
Base.BroadcastStyle(style::BlockStyle, ::Broadcast.AbstractArrayStyle) = style

Base.copy(bc::Broadcast.Broadcasted{BlockStyle}) = NoiseMatrix(Broadcast.materialize(of_blocks(bc, matrix_in(bc).rows)))

function Base.copyto!(out::NoiseMatrix, bc::Broadcast.Broadcasted{BlockStyle})
    Broadcast.materialize!(blocks(out), of_blocks(bc, out.rows))
    return out
end

of_blocks(bc::Broadcast.Broadcasted, rows) = broadcasted(bc.f, map(x -> of_blocks(x, rows), bc.args)...)
of_blocks(A::NoiseMatrix, rows) = blocks(A)
of_blocks(x::AbstractVector, rows) = reshape(x, 1, rows, :)
of_blocks(x, rows) = x

matrix_in(bc::Broadcast.Broadcasted) = matrix_among(bc.args...)
matrix_among(A::NoiseMatrix, _...) = A
matrix_among(bc::Broadcast.Broadcasted{BlockStyle}, _...) = matrix_in(bc)
matrix_among(_, others...) = matrix_among(others...)

DiffEqBase.ODE_DEFAULT_NORM(A::NoiseMatrix{<:AbstractFloat}, t) = DiffEqBase.ODE_DEFAULT_NORM(A.entries, t)
