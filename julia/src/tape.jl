# What the reverse keeps of each step: the step itself or the state at its start; the arrays of steps move to the tape.

"Keeps the step itself, or a copy of the state at its start; tells whether the tape has taken the stages."
function keep!(rec::Recording{V}, recorder::StageRecorder) where {V}
    (; step) = recorder
    if recorder.packed !== nothing
        push!(rec.tape, snapshot!(recorder.packed, recorder.retired))
    elseif rec.settings.keep === :stages
        push!(rec.tape, snapshot!(recorder))
        return true
    elseif rec.settings.keep === :states
        y = copyto!(acquire!(V, length(rec.y0)), step.arguments[1])
        push!(rec.tape, Step(step.t, step.h, step.t1, V[], [y], Any[], y, step.scratch))
    end
    return false
end

"The step as it is now; [`leave_tape!`](@ref) then gives the next one other arrays."
function snapshot!(recorder::StageRecorder)
    (; step, tableau, spare) = recorder
    (; t, h, t1, k, arguments, residuals, y1, scratch) = step
    stages = 1:tableau.stages
    spare === nothing && return Step(t, h, t1, k[stages], arguments[stages], residuals[stages], y1, scratch)
    recorder.spare = nothing
    spare.t, spare.h, spare.t1, spare.y1 = t, h, t1, y1
    return share!(spare, step, 1, tableau.stages)
end

"Puts the arrays of stages `first` to `last` of one step into another."
function share!(to::Step, from::Step, first, last)
    copyto!(to.k, first, from.k, first, last - first + 1)
    copyto!(to.arguments, first, from.arguments, first, last - first + 1)
    copyto!(to.residuals, first, from.residuals, first, last - first + 1)
    return to
end

"Arrays for the step after one that the tape has taken; with `carry` the first stage is that one's last."
function leave_tape!(recorder::StageRecorder; carry = recorder.tableau.fsal)
    recorder.on_tape || return nothing
    recorder.on_tape = false
    (; step, tableau, rhs) = recorder
    (; k, arguments, residuals), n, first = step, tableau.stages, tableau.fsal ? 2 : 1
    old = take!(recorder.retired)
    if carry
        k[1], arguments[1], residuals[1] = k[n], arguments[n], residuals[n]
    elseif tableau.fsal  # the old step's first stage may be another one's last
        new_stage!(step, 1, rhs.field)
    end
    old === nothing ? foreach(i -> new_stage!(step, i, rhs.field), first:n) : share!(step, old, first, n)
    step.y1 = tableau.fsal ? arguments[n] : old === nothing ? new_array(step) : old.y1
    recorder.spare = old
    return nothing
end

new_array(step::Step{V}) where {V} = acquire!(V, length(step.scratch))

function new_stage!(step::Step, i, field)
    step.k[i], step.arguments[i], step.residuals[i] = new_array(step), new_array(step), residuals(field)
    return nothing
end

"What the tape's steps go back to."
kind_of(recorder::StageRecorder) = recorder.retired
kind_of(_) = nothing

"An array that begins with the state at the start of a step."
start_of(entry::Step) = entry.arguments[1]
start_of(entry) = entry

"Releases the memory of stages from `first` on, and of the step's end."
function release!(step::Step, first = 1)
    (; k, arguments, residuals) = step
    any(i -> isassigned(arguments, i) && arguments[i] === step.y1, eachindex(arguments)) || release!(step.y1)
    for i in first:length(arguments)
        isassigned(arguments, i) && release!(arguments[i])
        i <= length(k) && isassigned(k, i) && release!(k[i])
        i <= length(residuals) && residuals[i] !== nothing && foreach(release!, residuals[i])
    end
    return nothing
end

"Releases the tape's memory; the recording has no reverse any more."
function release!(rec::Recording)
    rec.retired === nothing || return retire!(rec.retired, rec.tape)
    for (i, entry) in enumerate(rec.tape)
        if entry isa Step
            # an FSAL method's first stage is the last one of the step before
            release!(entry, i > 1 && entry.arguments[1] === rec.tape[i - 1].arguments[end] ? 2 : 1)
        else
            release!(entry)
        end
    end
    empty!(rec.tape)
    return nothing
end
