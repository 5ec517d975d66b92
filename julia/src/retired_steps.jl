# Steps that a tape has given back with all their arrays. Small ones cost more to allocate and to collect than to fill,
# and a training loop asks for the same ones at every iteration.

"Steps of one kind, of so many bytes each; part of the pool of [`acquire!`](@ref)."
struct Retired{V}
    steps::Vector{Step{V}}
    bytes::Int
end

"""
All kinds, by type and length of the state, number of stages, whether the last is the next step's first, sizes of
residuals, entries of a packed step (0 of another one).
"""
const RETIRED = Dict{Tuple{DataType, Int, Int, Bool, Any, Int}, Retired}()

"Those of an explicit method's steps that a tape keeps; `nothing` where the arrays of stages are large."
retired(_, _, ::Field, _) = nothing

function retired(tableau::Tableau, y::V, field::Field, packed) where {T, V <: Vector{T}}
    (; stages, fsal) = tableau
    length(y) * sizeof(T) < LARGE || return nothing
    bytes = stages * sizeof(T) * stage_entries(y, field)
    entries = packed === nothing ? 0 : length(packed.memory)
    return @lock POOL_LOCK get!(RETIRED, (V, length(y), stages, fsal, field.sizes, entries)) do
        Retired{V}(Step{V}[], bytes)
    end::Retired{V}
end

"Entries of a stage: argument, slope, residuals."
stage_entries(y, field::Field) = 2 * length(y) + (field.sizes === nothing ? 0 : sum(prod, field.sizes; init = 0))

"One of them, or `nothing`."
take!(::Nothing) = nothing

function take!(kind::Retired)
    return @lock POOL_LOCK begin
        isempty(kind.steps) && return nothing
        POOL_BYTES[] -= kind.bytes
        pop!(kind.steps)
    end
end

"Gives a tape's steps back. Nothing may refer to them any more."
function retire!(kind::Retired{V}, tape::Vector{Step{V}}) where {V}
    @lock POOL_LOCK begin
        POOL_BYTES[] + kind.bytes * length(tape) > POOL_LIMIT && empty_pool!()
        append!(kind.steps, tape)
        POOL_BYTES[] += kind.bytes * length(tape)
    end
    empty!(tape)
    return nothing
end
