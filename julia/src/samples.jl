# A batch whose samples step apart: one solve for each, on the threads that Julia was started with.

"The recordings of a batch's samples; of each field, which of its parameters is the sample's index, 0 if none is."
struct SampleSolve{R <: Recording}
    recordings::Vector{R}
    index::Vector{Int}
end

"The recordings of a solve: one, or one for each sample."
each_recording(rec::Recording) = [rec]
each_recording(samples::SampleSolve) = samples.recordings

release!(samples::SampleSolve) = foreach(release!, samples.recordings)

"""
    solve_samples!(make, recordings)

Solves them. `make()` gives each thread the function `solve(recording, sample)`, with arrays of its own.
"""
function solve_samples!(make, recordings)
    next = Threads.Atomic{Int}(1)
    on_threads(1:workers(recordings)) do _
        solve = make()
        while (sample = Threads.atomic_add!(next, 1)) <= length(recordings)
            solve(recordings[sample], sample)
        end
    end
    return recordings
end

"How many threads work on that many samples."
workers(recordings) = clamp(length(recordings), 1, Threads.nthreads())

"Shares the samples out into lists with about the same number of steps; the same lists in every run."
function shares(recordings)
    lists = [Int[] for _ in 1:workers(recordings)]
    costs, loads = accepted.(recordings), zeros(Int, length(lists))
    for sample in sortperm(costs; rev = true)
        least = argmin(loads)
        push!(lists[least], sample)
        loads[least] += 1 + costs[sample]
    end
    return lists
end

"An exception of a thread, and where it was thrown."
struct Thrown
    exception::Any
    backtrace::Any
end

"Calls `work` for each item, on a thread of its own; returns the results, or throws what one of the calls threw."
function on_threads(work, items)
    length(items) == 1 && return [work(only(items))]
    tasks = map(items) do item
        Threads.@spawn try
            work($item)
        catch exception
            Thrown(exception, catch_backtrace())
        end
    end
    results = map(fetch, tasks)
    for result in results
        result isa Thrown || continue
        text = explained(result.exception, result.backtrace)
        throw(text == "" ? result.exception : FieldError(text))
    end
    return results
end

"A number, or the entries of one sample of those of all."
of_sample(x::Number, _, _) = x
of_sample(x::AbstractVector, sample, entries) = x[((sample - 1) * entries + 1):(sample * entries)]
