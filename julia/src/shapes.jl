# Flat arrays under another shape. A solve has few arrays and evaluates its field many times: a new header takes longer
# than some products.

const SHAPES = 64  # remembered at most, a power of two

"""
    Shaper(size, V) -> shaper

`shaper(x)` is the flat array `x`, of type `V`, as one of that size over the same memory. Those of `Vector`s are remembered.
"""
struct Shaper{N, V, S}
    size::Dims{N}
    flat::Vector{V}
    shaped::Vector{S}
end

function Shaper(size::Dims{N}, ::Type{Vector{T}}) where {N, T}
    none = T[]
    return Shaper{N, Vector{T}, Array{T, N}}(size, fill(none, SHAPES), Vector{Array{T, N}}(undef, SHAPES))
end

Shaper(size::Dims{N}, ::Type{V}) where {N, V} = Shaper{N, V, Nothing}(size, V[], Nothing[])

(shaper::Shaper)(x) = reshape(x, shaper.size)
(::Shaper{1})(x) = x
(::Shaper{1, Vector{T}})(x::Vector{T}) where {T} = x

function (shaper::Shaper{N, Vector{T}})(x::Vector{T}) where {N, T}
    (; size, flat, shaped) = shaper
    place = 1 + Int((UInt(pointer_from_objref(x)) * 0x9e3779b97f4a7c15) >> (64 - trailing_zeros(SHAPES)))
    @inbounds flat[place] === x && return shaped[place]
    array = reshape(x, size)
    flat[place], shaped[place] = x, array
    return array
end
