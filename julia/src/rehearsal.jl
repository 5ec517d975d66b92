# A solve and its gradient as Python asks for them, for what is compiled with the packages.

function layer_keep!(dy, t, y, p, cache, residuals)
    r1, (W, b) = residuals[1], p
    mul!(r1, transpose(W), y)
    @.. r1 = fast_tanh(r1 + (b + t * b))
    copyto!(dy, r1)
    return nothing
end

function layer_back!(ybar, pbar, ct, t, y, p, cache, residuals)
    (; h1, h2) = cache
    r1, (W, b) = residuals[1], p
    @.. h1 = ct * (1 - r1^2)
    sum!(h2, h1)
    @.. pbar[2] += h2 * t
    mul!(pbar[1], y, transpose(h1), true, true)
    mul!(ybar, W, h1)
    return nothing
end

layer!(dy, t, y, p, cache) = layer_keep!(dy, t, y, p, cache, (dy,))

function layer_vjp!(ybar, pbar, ct, t, y, p, cache)
    layer!(cache.h1, t, y, p, cache)
    return layer_back!(ybar, pbar, ct, t, y, p, cache, (cache.h1,))
end

function layer_jvp!(dy, tdot, ydot, t, y, p, cache)
    (; h1), (W, b) = cache, p
    layer!(h1, t, y, p, cache)
    mul!(dy, transpose(W), ydot)
    @.. dy = (1 - h1^2) * (dy + tdot * b)
    return nothing
end

function layer_jvp_vjp!(ybar, pbar, ct, tdot, ydot, t, y, p, cache)
    (; h1, h2), (W, b) = cache, p
    layer!(ybar, t, y, p, cache)
    @.. h1 = ct * (1 - ybar^2)
    sum!(h2, h1)
    @.. pbar[2] += h2 * tdot
    mul!(pbar[1], ydot, transpose(h1), true, true)
    mul!(h1, transpose(W), ydot)
    @.. h1 = -2 * ct * ybar * (1 - ybar^2) * (h1 + tdot * b)
    sum!(h2, h1)
    @.. pbar[2] += h2 * (1 + t)
    mul!(pbar[1], y, transpose(h1), true, true)
    mul!(ybar, W, h1)
    return nothing
end

"A network of one layer as an exported field: its operations are compiled for their own sake too."
function layer_code(; tangents = false)
    arrays = (buffers = (y, B) -> (h1 = similar(y), h2 = similar(y, size(y, 1))), residuals = B -> ((2, B),))
    further = tangents ? WithTangents(layer_jvp!, layer_jvp_vjp!) : nothing
    return Code(@__MODULE__, layer!, layer_vjp!, arrays, (layer_keep!, layer_back!), further)
end

"Its initial state, save times and parameters."
layer_data(::Type{T}) where {T} = ones(T, 2, 2), [0.0, 0.5, 1.0], (T[0 1; -1 0], zeros(T, 2))

"The integers of [`Reader`](@ref) for arrays (or `nothing`), numbers and lists of arrays."
function integers_of(parts...)
    list = Int[]
    for part in parts
        if part isa Int
            push!(list, part)
        elseif part === nothing
            push!(list, 1, -1, 0)
        elseif part isa Tuple
            append!(list, length(part), integers_of(part...))
        else
            push!(list, findfirst(==(eltype(part)), collect(ELTYPES)), Int(pointer(part)), ndims(part), size(part)...)
        end
    end
    return list
end

"A path without noise."
function no_noise(_, _, w, z)
    foreach(i -> (unsafe_store!(w, 0, i); unsafe_store!(z, 0, i)), 1:4)
    return nothing
end

"""
    rehearse(T, name; adjoint = "")

Solves the layer in precision `T` by the method `name`, as drift and diffusion for a stochastic one, and computes the
discrete gradient with all records, or SciMLSensitivity's `adjoint`.
"""
function rehearse(::Type{T}, name::String; adjoint::String = "") where {T}
    y0, times, p = layer_data(T)
    slope = zero(y0)
    layer!(slope, times[1], y0, p, nothing)
    results, ys, y0bar, pbar = zeros(14), zeros(T, size(y0)..., length(times)), zero(y0), map(zero, p)
    ysbar, discrete, m = ones(T, size(ys)), adjoint == "", method(Symbol(name))
    code, number = -1, -2  # Python's are positive
    CODES[code] = layer_code(; tangents = m isa Rosenbrock)
    stochastic = m isa StochasticMethod
    path = stochastic ? Int(@cfunction(no_noise, Cvoid, (Cdouble, Cdouble, Ptr{T}, Ptr{T}))) : 0
    count = stochastic ? 2 : 1
    fields, pbars = ntuple(_ -> (code, 0, p), count), ntuple(_ -> pbar, count)
    GC.@preserve y0 ys times results slope p y0bar ysbar pbar begin
        grid = adapts(m) ? nothing : [0.3, 1.0]
        settings = (nothing, nothing, nothing, nothing, grid, nothing)  # tolerances, segments, controller; mass
        compared = y0, slope, nothing, nothing
        listed = count, Iterators.flatten(fields)..., 0, nothing  # and no conditions
        integers = integers_of(y0, ys, times, results, compared..., settings..., listed...)
        bridge_solve(
            number, Int(pointer(integers)), length(integers), name, 1.0e-3, 1.0e-3, NaN, 0.0, Inf, "", 1000, discrete, false,
            discrete ? "stages" : "nothing", path, BLAS.get_num_threads()
        )
        table = zeros(Int(results[2]), 5)
        bridge_records(number, Int(pointer(table)))
        bar = discrete ? ones(Int(results[2])) : nothing
        integers = integers_of(y0bar, ysbar, bar, bar, nothing, nothing, nothing, nothing, pbars...)
        bridge_backward(number, Int(pointer(integers)), length(integers), adjoint)
        bridge_free(number)
    end
    bridge_free(code)
    return nothing
end
