# Steps of small states, whose stages lie one after the other in one array, as a tape has them. To read a step back from
# an array for each slope, argument and residual takes as long as to compute with it: each lies somewhere else.

const PACKED = 2^14  # bytes of a step at most

"""
A step of an explicit method over one array: of each stage argument, slope and residuals, `stage` entries, then the
step's end if it is not the last argument. The step's arrays are parts of `memory`, and do not keep it alive.
"""
struct PackedStep{V}
    step::Step{V}
    memory::V
    stage::Int
end

"The step that a tape takes copies of, or `nothing` where its arrays are on another device, or copies would take long."
packed(_, _, ::Field) = nothing

function packed(tableau::Tableau, y::Vector{T}, field::Field) where {T}
    stage, n, (; stages, fsal) = stage_entries(y, field), length(y), tableau
    entries = stages * stage + (fsal ? 0 : n)
    return 0 < entries * sizeof(T) <= PACKED ? packed(tableau, y, field.sizes, zeros(T, entries), stage) : nothing
end

function packed(tableau::Tableau, y, sizes, memory, stage)
    step, place, (; stages, fsal) = empty_step(tableau, y), Ref(0), tableau
    function next(size)
        array = unsafe_wrap(Array, pointer(memory, place[] + 1), size)
        place[] += prod(size)
        return array
    end
    for i in 1:stages
        step.arguments[i], step.k[i] = next(size(y)), next(size(y))
        sizes === nothing || (step.residuals[i] = map(next, sizes))
    end
    step.y1 = fsal ? step.arguments[stages] : next(size(y))
    return PackedStep(step, memory, stage)
end

"A copy of the step as it is now, in an entry of a tape that nothing refers to any more if `kind` has one."
function snapshot!(packed::PackedStep{V}, kind::Retired{V}) where {V}
    (; memory, step) = packed
    entry = take!(kind)
    if entry === nothing
        copied = similar(memory)
        entry = Step(0.0, 0.0, 0.0, V[], [copied], Any[], copied, copied)
    end
    entry.t, entry.h, entry.t1 = step.t, step.h, step.t1
    copyto!(entry.arguments[1], memory)
    return entry
end

"Brings the step of a tape's entry back."
function recall!(packed::PackedStep, entry::Step)
    (; memory, step) = packed
    copied = entry.arguments[1]
    length(copied) == length(memory) || throw(DimensionMismatch("the step has $(length(copied)) entries, not $(length(memory))"))
    copyto!(memory, copied)
    step.t, step.h, step.t1 = entry.t, entry.h, entry.t1
    return step
end

"Makes the last stage the first one."
carry!(packed::PackedStep) =
    copyto!(packed.memory, 1, packed.memory, length(packed.memory) - packed.stage + 1, packed.stage)
