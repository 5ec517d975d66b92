# Memory of large arrays, kept for the next solve. A training loop asks for the same arrays at every
# step; memory that is fresh from the system costs more to touch than the solver's arithmetic on it.

const LARGE = 2^16  # bytes; below, Julia's own allocator is as fast
const SPARE_LIMIT = 2^30  # bytes that are held at most

"Flat arrays that nothing refers to any more, by element type and length."
const SPARE = Dict{Tuple{DataType, Int}, Vector{Any}}()
const SPARE_BYTES = Ref(0)
const SPARE_LOCK = ReentrantLock()

"""
    take(V, size)

An array of that size or length and of the kind of the vector type `V`; what is in it is unknown.
"""
take(::Type{V}, size::Dims) where {V} = reshape(take(V, prod(size)), size)
take(::Type{V}, length::Int) where {V} = V(undef, length)

function take(::Type{Vector{T}}, n::Int) where {T}
    (!isbitstype(T) || n * sizeof(T) < LARGE) && return Vector{T}(undef, n)
    @lock SPARE_LOCK begin
        list = get(SPARE, (T, n), nothing)
        if list !== nothing && !isempty(list)
            SPARE_BYTES[] -= n * sizeof(T)
            return pop!(list)::Vector{T}
        end
    end
    return Vector{T}(undef, n)
end

"""
    give(array)

Hands an array's memory to whoever calls [`take`](@ref) next. Nothing may refer to it any more.
"""
give(_) = nothing

function give(x::Array{T}) where {T}
    isbitstype(T) || return nothing
    bytes = length(x) * sizeof(T)
    bytes < LARGE && return nothing
    @lock SPARE_LOCK begin
        if SPARE_BYTES[] + bytes > SPARE_LIMIT
            empty!(SPARE)  # sizes that are asked for no more would stay for ever
            SPARE_BYTES[] = 0
        end
        push!(get!(Vector{Any}, SPARE, (T, length(x))), vec(x))
        SPARE_BYTES[] += bytes
    end
    return nothing
end
