# What Python calls. Only numbers, text and addresses cross: Python owns every array that it sees, and
# Julia what it keeps between forward and backward, under a number. Nothing here calls Python, except
# a Brownian path's C function.

const ELTYPES = (Float32, Float64, Int64, Int32, Bool)

const CODES = Dict{Int, Code}()
const KEPT = Dict{Int, Any}()
const NUMBERS = Ref(0)

next_number() = NUMBERS[] += 1

"Compiles an exported field; returns its number."
function bridge_compile(source::String, name::String)
    number = next_number()
    CODES[number] = name == "" ? compile_plain(source) : compile(source, name)
    return number
end

"Forgets a field, or what a solve kept, by number."
function bridge_free(number::Int)
    haskey(KEPT, number) && release!(pop!(KEPT, number).recording)
    delete!(CODES, number)
    return nothing
end

"Reads a list of 64-bit integers from the front."
mutable struct Reader
    const words::Vector{Int}
    place::Int
end

Reader(address::Int, count::Int) = Reader(unsafe_wrap(Array, Ptr{Int}(address), count), 0)
word(r::Reader) = r.words[r.place += 1]
words(r::Reader) = ntuple(_ -> word(r), word(r))

"""
An array in Python's memory: element type, address, dimensions (reversed). The address -1 is `nothing`;
an empty tensor has none. In place of the element type 0 says that a DLPack structure follows.
"""
function array(r::Reader)
    kind, address = word(r), word(r)
    kind == 0 && return shared(Ptr{Cvoid}(address))
    T, dims = ELTYPES[kind], words(r)
    address == -1 && return nothing
    return address == 0 ? Array{T}(undef, dims) : unsafe_wrap(Array, Ptr{T}(address), dims)
end

arrays(r::Reader) = ntuple(_ -> array(r), word(r))

"""
    shared(address) -> array

The array that a `DLManagedTensor` describes, in its own memory and on its own device, dimensions
reversed. Python holds the structure and frees it after the call. The DLPack extension has the method.
"""
function shared end

"Makes the device of that kind and number the one that new arrays lie on."
enter(_, _) = nothing

"""
    finish(array)

Waits until what was started on the array's device is done: Python's library has another queue there.
"""
finish(_) = nothing

"What a solve, or a local step, keeps for the way back."
struct Kept{R}
    recording::R
    codes::Vector{Code}
    parameters::Vector{Tuple}
    shape::Dims
end

function fields_of(kept_codes, parameters, state, shape, pbars = nothing)
    return map(eachindex(kept_codes)) do i
        pbar = pbars === nothing ? nothing : pbars[i]
        Field(dynamics(kept_codes[i], state, parameters[i]), shape, typeof(vec(state)); pbar)
    end
end

"""
    bridge_solve(address, count, method, rtol, atol, dt0, max_steps, record, keep, path, threads) -> number

Solves with so many threads of BLAS. The words at `address`: state, outputs, times, results, null or
where to write the first field's value at the start, then the number of fields and for each its code
and parameters. Results (Float64): status, accepted, saved, rejected, calls of the
first and second field, dt_first, t_last, dt_last. `path` is the address of a Brownian path's
`void (double s, double t, T *w, T *z)`, or 0.
"""
function bridge_solve(
        address::Int, count::Int, method_name::String, rtol::Float64, atol::Float64, dt0::Float64,
        max_steps::Int, record::Bool, keep::String, path::Int, threads::Int
    )
    BLAS.get_num_threads() == threads || BLAS.set_num_threads(threads)
    r = Reader(address, count)
    state, ys, times, results, probe = (array(r) for _ in 1:5)
    codes, parameters = read_fields(r)
    settings = Settings(; rtol, atol, dt0, max_steps, record, keep = Symbol(keep))
    return solve_and_keep(method(Symbol(method_name)), settings, state, ys, times, results, probe, codes, parameters, path)
end

function read_fields(r::Reader)
    codes, parameters = Code[], Tuple[]
    for _ in 1:word(r)
        push!(codes, CODES[word(r)])
        push!(parameters, arrays(r))
    end
    return codes, parameters
end

const STATUSES = (:success, :nonfinite, :underflow, :steps)

function solve_and_keep(method, settings, state, ys, times, results, probe, codes, parameters, path)
    y0 = vec(state)
    fields = fields_of(codes, parameters, state, size(state))
    probe === nothing || fields[1].value(vec(probe), y0, eltype(y0)(times[1]), nothing)
    recording = Recording(method, settings, copy(times), y0, reshape(ys, length(y0), :))
    noise = path == 0 ? nothing : PathNoise(CPath(Ptr{Cvoid}(path)), times[1], times[end], y0)
    forward!(recording, fields...; noise)
    calls = map(f -> f.calls[], fields)
    results .= (
        findfirst(==(recording.status), STATUSES) - 1, accepted(recording), recording.saved,
        recording.rejected, calls[1], length(calls) > 1 ? calls[2] : 0, recording.dt_first,
        recording.t_last, recording.dt_last,
    )
    finish(state)
    number = next_number()
    KEPT[number] = Kept(recording, codes, parameters, size(state))
    return number
end

"A path behind a C function's address."
struct CPath
    address::Ptr{Cvoid}
end

(path::CPath)(w::Vector{T}, z::Vector{T}, s, t) where {T} =
    ccall(path.address, Cvoid, (Cdouble, Cdouble, Ptr{T}, Ptr{T}), s, t, w, z)

function (path::CPath)(w::AbstractVector{T}, z::AbstractVector{T}, s, t) where {T}
    host = Vector{T}(undef, length(w)), Vector{T}(undef, length(z))
    path(host..., s, t)
    foreach(copyto!, (w, z), host)
    return nothing
end

"Tells where Python has the flag that asks a solve to stop."
bridge_watch(address::Int) = (STOP[] = Ptr{Int32}(address); nothing)

"Why solve `number` stopped early."
bridge_reason(number::Int) = KEPT[number].recording.reason

"Copies t, dt, error, stiffness and the implicit flag to the columns of a (5, steps) Float64 array."
function bridge_records(number::Int, address::Int)
    rec = KEPT[number].recording
    table = unsafe_wrap(Array, Ptr{Float64}(address), (accepted(rec), 5))
    for (column, list) in enumerate((rec.t, rec.dt, rec.error, rec.stiffness, rec.implicit))
        isempty(list) ? fill!(view(table, :, column), NaN) : copyto!(view(table, :, column), list)
    end
    return nothing
end

"""
    bridge_backward(number, address, count)

The words: initial state's cotangent (written), outputs' cotangents, error's, stiffness's (each may be
null), cotangents of the times (null, or written) and the saved states, then for each field its
parameters' cotangents (added to).
"""
function bridge_backward(number::Int, address::Int, count::Int)
    kept, r = KEPT[number], Reader(address, count)
    y0bar, ysbar, errorbar, stiffnessbar, tbar, ys = (array(r) for _ in 1:6)
    pbars = [arrays(r) for _ in kept.codes]
    rec = kept.recording
    state = reshape(rec.y0, kept.shape)
    fields = fields_of(kept.codes, kept.parameters, state, kept.shape, pbars)
    cotangents = Cotangents(rec, ysbar, errorbar, stiffnessbar)
    reverse!(vec(y0bar), rec, fields..., cotangents)
    tbar === nothing || reverse_times!(
        tbar, fields[1], rec.times, reshape(ys, length(rec.y0), :), cotangents.ys, vec(y0bar)
    )
    finish(y0bar)
    return nothing
end

"""
    bridge_adjoint(number, address, count, name)

[`bridge_backward`](@ref) by one of SciMLSensitivity's adjoints.
"""
function bridge_adjoint(number::Int, address::Int, count::Int, name::String)
    kept, r = KEPT[number], Reader(address, count)
    y0bar, ysbar = array(r), array(r)
    foreach(_ -> array(r), 1:4)
    pbar = arrays(r)
    rec = kept.recording
    ysbar === nothing && return nothing
    state = reshape(rec.y0, kept.shape)
    times = [output.step == 0 ? rec.times[1] : time_of(rec, output) for output in sort(rec.outputs; by = o -> o.row)]
    order = sortperm(times; rev = rec.times[end] < rec.times[1])
    adjoint!(
        vec(y0bar), pbar, rec.method, rec.settings, dynamics(kept.codes[1], state, kept.parameters[1]), kept.shape,
        rec.y0, times[order], reshape(ysbar, length(rec.y0), :)[:, order], name
    )
    return nothing
end

"The time of a saved state: a save time, or the end of the step that an anchor was put at."
time_of(rec::Recording, output::Output) =
    output.row <= length(rec.times) ? rec.times[output.row] : rec.t[output.step]

"""
    bridge_anchor(number, step) -> t

Copies the state at the start of a step to the last column of the outputs, behind those of the save
times, and makes it an output like them. Returns its time.
"""
function bridge_anchor(number::Int, step::Int)
    rec = KEPT[number].recording
    column = size(rec.ys, 2)
    copyto!(view(rec.ys, :, column), 1, start_of(rec.tape[step]), 1, length(rec.y0))
    place = findfirst(output -> output.step >= step, rec.outputs)
    insert!(rec.outputs, something(place, length(rec.outputs) + 1), Output(column, step - 1, 1.0))
    finish(rec.ys)
    return step == 1 ? rec.times[1] : rec.t[step - 1]
end

"""
    bridge_local(address, count, method, rtol, atol, t, t_end, h, path) -> number

One step apart from a solve; h = NaN chooses its size. The words: state, results, then fields as for
[`bridge_solve`](@ref). Results: end, size, error, stiffness, calls of the first and second field.
"""
function bridge_local(
        address::Int, count::Int, method_name::String, rtol::Float64, atol::Float64, t::Float64,
        t_end::Float64, h::Float64, path::Int
    )
    r = Reader(address, count)
    state, results = array(r), array(r)
    codes, parameters = read_fields(r)
    fields = fields_of(codes, parameters, state, size(state))
    noise = path == 0 ? nothing : CPath(Ptr{Cvoid}(path))
    step = local_step(method(Symbol(method_name)), Settings(; rtol, atol), fields, vec(state), t, t_end, h; noise)
    calls = map(f -> f.calls[], fields)
    results .= (step.t1, step.h, step.error, step.stiffness, calls[1], length(calls) > 1 ? calls[2] : 0)
    finish(state)
    number = next_number()
    KEPT[number] = Kept(step, codes, parameters, size(state))
    return number
end

"The reverse of `bridge_local`; the words: the state's cotangent (written), then the parameters' (added to)."
function bridge_local_backward(number::Int, address::Int, count::Int, Ebar::Float64, Sbar::Float64, freeze::Bool)
    kept, r = KEPT[number], Reader(address, count)
    ybar = array(r)
    pbars = [arrays(r) for _ in kept.codes]
    fields = fields_of(kept.codes, kept.parameters, ybar, kept.shape, pbars)
    reverse!(vec(ybar), kept.recording, fields, Ebar, Sbar; freeze)
    finish(ybar)
    return nothing
end
