# What fields do with lists of integers. Names and meanings are torch's; indices count from 0, along Julia's
# dimension `dim`. An index outside the array throws a BoundsError, as torch raises an IndexError.

"`x` as (before, along, after) `dim`."
function _split_at(x, dim)
    before, after = prod(size(x)[1:(dim - 1)]), prod(size(x)[(dim + 1):end])
    return reshape(x, before, size(x, dim), after)
end

"One list for all: `target[i, j, k] = x[i, index[j], k]`."
function index_select!(target, x, index, dim)
    to, from, list = _split_at(target, dim), _split_at(x, dim), vec(index)
    to .= view(from, :, list .+ 1, :)
    return target
end

function index_select!(target::Array, x::Array, index::Array, dim)
    to, from = _split_at(target, dim), _split_at(x, dim)
    checkbounds(Bool, axes(from, 2), _range(index)) || throw(BoundsError(x, _range(index)))
    for k in axes(to, 3), j in axes(to, 2)
        at = index[j] + 1
        @inbounds for i in axes(to, 1)
            to[i, j, k] = from[i, at, k]
        end
    end
    return target
end

_range(index) = isempty(index) ? (1:0) : (minimum(index) + 1):(maximum(index) + 1)

"Adds `source` where the list says: `target[i, index[j], k] += source[i, j, k]`."
function index_add!(target, source, index, dim)
    to, from = _split_at(target, dim), _split_at(source, dim)
    for k in axes(to, 3) # NNlib's scatter! adds along the last dimension
        NNlib.scatter!(+, view(to, :, :, k), view(from, :, :, k), vec(index) .+ 1)
    end
    return target
end

index_add!(target::Array, source::Array, index::Array, dim) = _put!(+, target, source, index, dim)

"Writes `source` where the list says; of several for one place the last one stays."
index_copy!(target, source, index, dim) = _put!((_, new) -> new, target, source, index, dim)

function _put!(join, target, source, index, dim)
    to, from = _split_at(target, dim), _split_at(source, dim)
    checkbounds(Bool, axes(to, 2), _range(index)) || throw(BoundsError(target, _range(index)))
    for k in axes(from, 3), j in axes(from, 2)
        at = index[j] + 1
        @inbounds for i in axes(from, 1)
            to[i, at, k] = join(to[i, at, k], from[i, j, k])
        end
    end
    return target
end

"An index of every entry's own: `target[i, j, k] = x[i, index[i, j, k], k]`."
function gather!(target, x, index, dim)
    for I in CartesianIndices(target)
        target[I] = x[_moved(I, dim, index[I] + 1)]
    end
    return target
end

scatter_add!(target, source, index, dim) = _scatter!(+, target, source, index, dim)

"Of several for one place the last one stays."
scatter!(target, source, index, dim) = _scatter!((_, new) -> new, target, source, index, dim)

function _scatter!(join, target, source, index, dim)
    for I in CartesianIndices(index)
        at = _moved(I, dim, index[I] + 1)
        target[at] = join(target[at], source[I])
    end
    return target
end

_moved(I::CartesianIndex{N}, dim, at) where {N} = CartesianIndex(ntuple(d -> d == dim ? at : I[d], Val(N)))
