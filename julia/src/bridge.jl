# What Python calls. Only numbers, text and addresses cross: Python owns every array that it sees, and
# Julia the solves that it saves for their reverse, by number. Nothing here calls Python, except a
# Brownian path's C function. The numbers are Python's, which has one before the call that keeps something under it: so it
# can have that forgotten, however the call ends.

const CODES = Dict{Int, Code}()
const SAVED_SOLVES = Dict{Int, Any}()

"Compiles an exported field."
function bridge_compile(number::Int, source::String, name::String)
    CODES[number] = name == "" ? compile_plain(source) : compile(source, name)
    return nothing
end

"Forgets the field or the saved solve of that number, if there is one."
function bridge_free(number::Int)
    haskey(SAVED_SOLVES, number) && release!(pop!(SAVED_SOLVES, number).recording)
    delete!(CODES, number)
    return nothing
end

"A solve, or a local step, that its reverse can be asked for."
struct SavedSolve{R}
    recording::R
    codes::Vector{Code}
    parameters::Vector{Tuple}
    columns::Vector{Int}
    shape::Dims
end

"The fields over states like `state`; where they are not `shared`, with buffers of their own."
function fields_of(
        codes, parameters, state, pbars = fill(nothing, length(codes)); shared = true, columns = zeros(Int, length(codes))
    )
    return fields_of(typeof(vec(state)), codes, parameters, state, pbars, shared, columns)
end

function fields_of(::Type{V}, codes, parameters, state, pbars, shared, columns) where {V}
    return Field{V, realtype(V)}[
        field_of(V, codes[i], parameters[i], state, pbars[i], shared, columns[i]) for i in eachindex(codes)
    ]
end

# Not compiled for each list of parameters: what is compiled for a field is its own code.
field_of(::Type{V}, code::Code, @nospecialize(p), state, @nospecialize(pbar), shared::Bool, columns::Int) where {V} =
    Field(dynamics(code, state, p, shared), size(state), V, pbar, columns)

"Calls of the first and of the second field, 0 without one."
calls_of(fields) = (fields[1].calls[], length(fields) > 1 ? fields[2].calls[] : 0)

"""
    bridge_solve(number, address, count, method, rtol, atol, dt0, dt_min, dt_max, controller, max_steps, record, dense,
        keep, path, threads) -> Bool

Solves with so many threads of BLAS, and saves that under the number. The arguments at `address`:

- state, outputs, times, results,
- of first and second field, null and null or a state and the field's value there within the first segment (where ours is
  another one nothing is solved, and the result is `false`),
- null or tolerances of each entry (which replace `rtol`, `atol`),
- null or the (3, S) columns of the [`Segment`](@ref)s,
- null or the constants of a [`controller`](@ref RegNDE.controller),
- null or the ends of the steps of a method of fixed step size,
- null or the mass matrix,
- the number of fields, and for each its code, columns (of a diffusion that is a matrix, else 0) and parameters,
- likewise for the conditions of events, with the columns (direction, whether terminal), or null, behind them.

Results (Float64): status, accepted, saved, rejected, calls of the first and second field, dt_first, t_last, dt_last,
first_error, steps with events, Jacobians, factorisations, size of the first accepted step. `path` is the address of a Brownian path's
`void (double s, double t, T *w, T *z)`, or 0.
"""
function bridge_solve(
        number::Int, address::Int, count::Int, method_name::String, rtol::Float64, atol::Float64, dt0::Float64,
        dt_min::Float64, dt_max::Float64, controller_name::String, max_steps::Int, record::Bool, dense::Bool, keep::String,
        path::Int, threads::Int
    )
    BLAS.get_num_threads() == threads || BLAS.set_num_threads(threads)
    r = Reader(address, count)
    state, ys, times, results = array(r), array(r), doubles(r), doubles(r)
    compared = (array(r), array(r)), (array(r), array(r))
    given, mass = read_settings(r, controller_name, rtol, atol), mass_of(r)
    codes, parameters, columns = read_fields(r)
    looked_for = read_conditions(r)
    y0, fields = vec(state), fields_of(codes, parameters, state; columns)
    conditions = conditions_of(looked_for, looked_for.parameters, state)
    settings = Settings(
        given.rtol, given.atol, dt0, dt_min, dt_max, given.controller, given.segments, given.grid, max_steps, record, dense,
        Symbol(keep)
    )
    ys = reshape(ys, length(y0), :)
    recording = Recording(with_mass(method(Symbol(method_name)), mass), settings, copy(times), y0, ys)
    noise = path == 0 ? nothing :
        PathNoise(CPath(Ptr{Cvoid}(path)), times[1], ends(recording), similar(y0, noise_length(fields[2], length(y0))))
    for ((beside, value), field) in zip(compared, fields)
        value === nothing || agrees(value, field, beside, recording) || return false
    end
    forward!(recording, fields...; noise, conditions)
    results .= results_of(recording, fields)
    synchronize(state)
    SAVED_SOLVES[number] = SavedSolve(recording, codes, parameters, columns, size(state))
    return true
end

"The part of the first segment behind which a field is compared: what a change does may not show at its ends."
const PROBE = 0.618

"Whether the field has that value at that state and there, to rounding; infinities and NaN agree with themselves."
function agrees(value, field, state, rec::Recording)
    ours, start, segment = similar(rec.y0, length(value)), rec.times[1], rec.segments[1]
    confine!(field, segment)
    value!(ours, field, start + PROBE * (segment.t_end - start), vec(state))
    tolerance, rounding = nearness(realtype(ours))
    largest = mapreduce(x -> isfinite(x) ? abs(x) : zero(abs(x)), max, value; init = zero(rounding))
    near(a, b) = isequal(a, b) || abs(a - b) <= tolerance * (largest + abs(b)) + rounding
    return mapreduce(near, &, ours, vec(value); init = true)
end

"To what a field's values are compared: relative to the largest, and absolute."
nearness(::Type{T}) where {T} = T(T === Float32 ? 1.0f-4 : 1.0e-9), 10 * eps(T)

"The numbers that [`bridge_solve`](@ref) describes."
function results_of(rec::Recording, fields)
    return Float64.(
        (
            findfirst(==(rec.status), STATUSES) - 1, accepted(rec), rec.saved, rec.rejected, calls_of(fields)...,
            rec.dt_first, rec.t_last, rec.dt_last, rec.first_error, length(rec.crossings), rec.jacobians, rec.factorisations,
            isempty(rec.dt) ? NaN : rec.dt[1],
        )
    )
end

"The conditions over states like `state`; `nothing` if there are none."
function conditions_of(looked_for, parameters, state; shared = true)
    isempty(looked_for.codes) && return nothing
    fields = fields_of(looked_for.codes, parameters, state; shared)
    return Conditions(fields, looked_for.directions, collect(Bool, looked_for.terminal))
end

const STATUSES = (:success, :nonfinite, :underflow, :steps, :event)

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

"Evaluates text whose value is text, as Julia's C interface does at the start: to load a package, and our extensions."
bridge_evaluate(text::String) = include_string(Main, text)::String

"How many solves are saved, and fields compiled."
bridge_saved() = length(SAVED_SOLVES) + length(CODES)

"Tells where Python has the integers that [`check_stop_flag`](@ref) looks at."
bridge_set_flags(address::Int) = (FLAGS[] = Ptr{Int}(address); nothing)

"Why solve `number`, or that sample of it, stopped early."
bridge_reason(number::Int, sample::Int) = each_recording(SAVED_SOLVES[number].recording)[sample].reason

"""
    bridge_crossings(number, address)

Copies the steps with events to the columns of a (3 + 2 conditions, steps) Float64 array: sample (from 0), step (from
1), start, values of the conditions there, and at the step's end.
"""
function bridge_crossings(number::Int, address::Int)
    recordings = each_recording(SAVED_SOLVES[number].recording)
    columns = [
        [sample - 1; here.step; here.start; here.before; here.after]
        for (sample, rec) in enumerate(recordings) for here in rec.crossings
    ]
    copyto!(unsafe_wrap(Array, Ptr{Float64}(address), sum(length, columns)), reduce(vcat, columns))
    return nothing
end

"Copies t, dt, error, stiffness and the implicit flag to the columns of a (5, steps) Float64 array."
function bridge_records(number::Int, address::Int)
    rec = SAVED_SOLVES[number].recording
    table = unsafe_wrap(Array, Ptr{Float64}(address), (accepted(rec), 5))
    for (column, list) in enumerate((rec.t, rec.dt, rec.error, rec.stiffness, rec.implicit))
        isempty(list) ? fill!(view(table, :, column), NaN) : copyto!(view(table, :, column), list)
    end
    return nothing
end

"Copies the steps' pieces to the columns of an array, and forgets them; the argument: the array."
function bridge_pieces(number::Int, address::Int, count::Int)
    recordings = each_recording(SAVED_SOLVES[number].recording)
    columns = reshape(array(Reader(address, count)), length(recordings[1].y0), :)
    pieces = Iterators.flatten(rec.pieces for rec in recordings)
    foreach(((i, x),) -> copyto!(view(columns, :, i), x), enumerate(pieces))
    foreach(rec -> empty!(rec.pieces), recordings)
    synchronize(recordings[1].y0)
    return nothing
end

"The number of slopes in a method's interpolant, and row by row the coefficients of theta, theta^2, ... of each, as text."
function bridge_interpolant(method_name::String)
    weights = method(Symbol(method_name)).tableau.dense
    return join((size(weights, 1), permutedims(weights)...), ' ')
end

"""
    bridge_backward(number, address, count, adjoint)

By the discrete gradient, or one of SciMLSensitivity's adjoints. The arguments: initial state's cotangent (written), outputs' cotangents, error's, stiffness's (each may be
null), those of the steps' pieces (null), cotangents of the times (null, or written) and the saved states,
cotangents of the stops (null, or written), then for each field its parameters' cotangents (added to).
"""
function bridge_backward(number::Int, address::Int, count::Int, adjoint::String)
    (; recording, codes, parameters, columns, shape), r = SAVED_SOLVES[number], Reader(address, count)
    y0bar, ysbar, errorbar, stiffnessbar, pieces, tbar, ys, stops = (array(r) for _ in 1:8)
    pbars = Tuple[arrays(r) for _ in codes]
    adjoint == "" || return continuous_backward(SAVED_SOLVES[number], y0bar, ysbar, pbars[1], adjoint)
    fields = fields_of(codes, parameters, reshape(recording.y0, shape), pbars; columns)
    cotangents = Cotangents(recording, ysbar, errorbar, stiffnessbar; pieces, stops)
    reverse!(vec(y0bar), recording, fields..., cotangents)
    tbar === nothing || reverse_times!(
        tbar, recording, fields[1], reshape(ys, length(recording.y0), :), cotangents.ys, vec(y0bar)
    )
    synchronize(y0bar)
    return nothing
end

function continuous_backward(saved, y0bar, ysbar, pbar, name)
    ysbar === nothing && return nothing
    (; recording, codes, parameters, shape) = saved
    (; y0, outputs) = recording
    times = [time_of(recording, output) for output in sort(outputs; by = o -> o.row)]
    order = sortperm(times; rev = recording.times[end] < recording.times[1])
    adjoint!(
        vec(y0bar), pbar, recording.method, recording.settings,
        dynamics(codes[1], reshape(y0, shape), parameters[1]), shape, y0, times[order],
        reshape(ysbar, length(y0), :)[:, order], name
    )
    return nothing
end

"The time of a saved state: the initial one, a save time, or the end of the step before a local start."
function time_of(rec::Recording, output::Output)
    output.step == 0 && return rec.times[1]
    return output.row <= length(rec.times) ? rec.times[output.row] : rec.t[output.step]
end

"""
    bridge_local_start(number, step) -> t

Copies the state at the start of a step to the last column of the outputs, behind those of the save
times, and makes it an output like them. Returns its time.
"""
function bridge_local_start(number::Int, step::Int)
    rec = SAVED_SOLVES[number].recording
    column = size(rec.ys, 2)
    copyto!(view(rec.ys, :, column), 1, start_of(rec.tape[step]), 1, length(rec.y0))
    position = findfirst(output -> output.step >= step, rec.outputs)
    insert!(rec.outputs, something(position, length(rec.outputs) + 1), Output(column, step - 1, 1.0))
    synchronize(rec.ys)
    return step == 1 ? rec.times[1] : rec.t[step - 1]
end

"""
    bridge_local(number, address, count, method, rtol, atol, t, t_end, h, dt_max, path)

One step apart from a solve, saved under the number; h = NaN chooses its size. The arguments: state, results, tolerances, segment, mass
matrix (or null) and fields as for [`bridge_solve`](@ref). Results: end, size, error, stiffness, calls of the first and second field.
"""
function bridge_local(
        number::Int, address::Int, count::Int, method_name::String, rtol::Float64, atol::Float64, t::Float64,
        t_end::Float64, h::Float64, dt_max::Float64, path::Int
    )
    r = Reader(address, count)
    state, results = array(r), array(r)
    settings = Settings(; tolerances_of(r, rtol, atol)..., dt_max, segments = segments_of(r))
    m = with_mass(method(Symbol(method_name)), mass_of(r))
    codes, parameters, columns = read_fields(r)
    fields = fields_of(codes, parameters, state; columns)
    noise = path == 0 ? nothing : CPath(Ptr{Cvoid}(path))
    here = local_step(m, settings, fields, vec(state), t, t_end, h; noise)
    results .= (here.step.t1, here.step.h, here.error, here.stiffness, calls_of(fields)...)
    synchronize(state)
    SAVED_SOLVES[number] = SavedSolve(here, codes, parameters, columns, size(state))
    return nothing
end

"The reverse of `bridge_local`; the arguments: the state's cotangent (written), then the parameters' (added to)."
function bridge_local_backward(number::Int, address::Int, count::Int, Ebar::Float64, Sbar::Float64, freeze::Bool)
    (; recording, codes, parameters, columns), r = SAVED_SOLVES[number], Reader(address, count)
    ybar = array(r)
    fields = fields_of(codes, parameters, ybar, Tuple[arrays(r) for _ in codes]; columns)
    reverse!(vec(ybar), recording, fields, Ebar, Sbar; freeze)
    synchronize(ybar)
    return nothing
end
