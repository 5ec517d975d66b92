# What Python calls for batches whose samples step apart.

"""
    bridge_samples(number, address, count, method, rtol, atol, dt0, dt_min, dt_max, controller, max_steps, record, keep,
        threads) -> Bool

Solves every sample of the state's last dimension by itself, and saves that under the number. The arguments at `address` are those of
[`bridge_solve`](@ref), of which the results are a column for each sample and the value to compare is the first sample's,
then for each field and condition which of its parameters is the sample's index (from 0), or 0.
"""
function bridge_samples(
        number::Int, address::Int, count::Int, method_name::String, rtol::Float64, atol::Float64, dt0::Float64,
        dt_min::Float64, dt_max::Float64, controller_name::String, max_steps::Int, record::Bool, keep::String, threads::Int
    )
    r = Reader(address, count)
    state, ys, times, results, beside, value, _, _ = (array(r) for _ in 1:8)
    common = (;
        read_settings(r, controller_name, rtol, atol)..., dt0, dt_min, dt_max, max_steps, record, keep = Symbol(keep),
    )
    m = with_mass(method(Symbol(method_name)), mass_of(r))
    codes, parameters, columns = read_fields(r)
    looked_for = read_conditions(r)
    index = [integer(r) for _ in 1:(length(codes) + length(looked_for.codes))]
    shape = (size(state)[1:(end - 1)]..., 1)
    n, batch = prod(shape), size(state, ndims(state))
    states, out, like = reshape(state, n, batch), reshape(ys, n, batch, :), similar(state, shape)
    ts = copy(times)
    recordings = map(1:batch) do sample
        each = (; rtol = of_sample(common.rtol, sample, n), atol = of_sample(common.atol, sample, n))
        Recording(m, Settings(; common..., each...), ts, states[:, sample], zeros(eltype(state), n, length(ts)))
    end
    value === nothing || agrees(value, first_field(codes, parameters, index, like), beside, recordings[1]) || return false
    set_threads(recordings, threads)
    solve_samples!(recordings) do
        own = own_parameters([parameters; looked_for.parameters], index)
        fields = fields_of(codes, own[eachindex(codes)], like; shared = false)
        conditions = conditions_of(looked_for, own[(length(codes) + 1):end], like; shared = false)
        kept = Ref{Any}(nothing)
        function solve(rec, sample)
            point_at!(own, index, sample)
            fields[1].calls[] = 0
            forward!(rec, kept, fields[1]; conditions)
            copyto!(view(out, :, sample, :), rec.ys)
            results[:, sample] .= results_of(rec, fields)
            return nothing
        end
    end
    SAVED_SOLVES[number] = SavedSolve(SampleSolve(recordings, index), codes, parameters, columns, shape)
    return true
end

"The first field, of the first sample."
function first_field(codes, parameters, index, like)
    own = own_parameters(parameters, index[eachindex(codes)])
    point_at!(own, index, 1)
    return fields_of(codes, own, like; shared = false)[1]
end

"One thread of BLAS where the samples have several."
function set_threads(recordings, threads)
    wanted = workers(recordings) > 1 ? 1 : threads
    BLAS.get_num_threads() == wanted || BLAS.set_num_threads(wanted)
    return nothing
end

"The fields' parameters with arrays of their own for the sample's index."
function own_parameters(parameters, index)
    return map(parameters, index) do list, place
        place == 0 ? list : ntuple(i -> i == place ? copy(list[i]) : list[i], length(list))
    end
end

"Sets the sample's index, from 0."
function point_at!(parameters, index, sample)
    for (list, place) in zip(parameters, index)
        place == 0 || fill!(list[place], sample - 1)
    end
    return nothing
end

"Copies t, dt, error, stiffness and the implicit flag of all samples to a (samples, steps, 5) Float64 array."
function bridge_sample_records(number::Int, address::Int, steps::Int)
    (; recordings) = SAVED_SOLVES[number].recording
    table = unsafe_wrap(Array, Ptr{Float64}(address), (length(recordings), steps, 5))
    for (sample, rec) in enumerate(recordings)
        for (column, list) in enumerate((rec.t, rec.dt, rec.error, rec.stiffness, rec.implicit))
            copyto!(view(table, sample, eachindex(list), column), list)
        end
    end
    return nothing
end

"""
    bridge_samples_backward(number, address, count)

By the discrete gradient. The arguments: initial state's cotangent (written), outputs' cotangents, those of the error
and of the stiffness, (samples, steps), and those of the steps' pieces (each may be null), then for each field its
parameters' cotangents (added to).
"""
function bridge_samples_backward(number::Int, address::Int, count::Int)
    (; recording, codes, parameters, shape), r = SAVED_SOLVES[number], Reader(address, count)
    (; recordings, index) = recording
    y0bar, ysbar, errorbar, stiffnessbar, piecesbar = (array(r) for _ in 1:5)
    pbars = Tuple[arrays(r) for _ in codes]
    n, batch = prod(shape), length(recordings)
    bars, like = reshape(y0bar, n, batch), similar(y0bar, shape)
    out = ysbar === nothing ? nothing : reshape(ysbar, n, batch, :)
    columns = piecesbar === nothing ? nothing : reshape(piecesbar, n, :)
    width = columns === nothing ? 0 : piece_count(recordings[1].method)
    ends = cumsum([width * length(rec.piece_steps) for rec in recordings])
    lists = shares(recordings)
    added = on_threads(lists) do samples
        sums = length(lists) == 1 ? pbars : [map(zero, list) for list in pbars]
        own = own_parameters(parameters, index[eachindex(codes)])
        fields = fields_of(codes, own, like, sums; shared = false)
        bar, kept = similar(y0bar, n), Ref{Any}(nothing)
        for sample in samples
            rec, steps = recordings[sample], accepted(recordings[sample])
            point_at!(own, index, sample)
            entries(list) = list === nothing ? nothing : list[sample, 1:steps]
            pieces = columns === nothing ? nothing : columns[:, (1 + (sample == 1 ? 0 : ends[sample - 1])):ends[sample]]
            ys = out === nothing ? nothing : out[:, sample, :]
            cotangents = Cotangents(rec, ys, entries(errorbar), entries(stiffnessbar); pieces)
            reverse!(bar, rec, kept, fields[1], cotangents)
            copyto!(view(bars, :, sample), bar)
        end
        kept[] === nothing || release!(kept[])
        return sums
    end
    if length(lists) > 1
        for sums in added, (list, parts) in zip(pbars, sums), (pbar, part) in zip(list, parts)
            pbar .+= part
        end
    end
    return nothing
end
