# Memory of large arrays, saved for the next solve. A training loop asks for the same arrays at every
# step; memory that is fresh from the system costs more to touch than the solver's arithmetic on it.

const LARGE = 2^16  # bytes; below, Julia's own allocator is as fast
const POOL_LIMIT = 2^30  # bytes that are held at most

"Flat arrays that nothing refers to any more, by element type and length."
const POOL = Dict{Tuple{DataType, Int}, Vector{Any}}()
const POOL_BYTES = Ref(0)
const POOL_LOCK = ReentrantLock()

"An array of that size or length and of the kind of the vector type `V`; what is in it is unknown."
acquire!(::Type{V}, size::Dims) where {V} = reshape(acquire!(V, prod(size)), size)
acquire!(::Type{V}, length::Int) where {V} = V(undef, length)

function acquire!(::Type{Vector{T}}, n::Int) where {T}
    (!isbitstype(T) || n * sizeof(T) < LARGE) && return Vector{T}(undef, n)
    @lock POOL_LOCK begin
        list = get(POOL, (T, n), nothing)
        if list !== nothing && !isempty(list)
            POOL_BYTES[] -= n * sizeof(T)
            return pop!(list)::Vector{T}
        end
    end
    return Vector{T}(undef, n)
end

"Gives an array's memory to the next [`acquire!`](@ref). Nothing may refer to it any more."
release!(_) = nothing

function release!(x::Array{T}) where {T}
    bytes = length(x) * sizeof(T)
    (!isbitstype(T) || bytes < LARGE) && return nothing
    @lock POOL_LOCK begin
        if POOL_BYTES[] + bytes > POOL_LIMIT
            empty_pool!()
        end
        push!(get!(Vector{Any}, POOL, (T, length(x))), vec(x))
        POOL_BYTES[] += bytes
    end
    return nothing
end

"Forgets all of it, under the lock: what is asked for no more would stay for ever."
function empty_pool!()
    empty!(POOL)
    foreach(kind -> empty!(kind.steps), values(RETIRED))
    POOL_BYTES[] = 0
    return nothing
end
