# What a first solve from Python needs, compiled with the package: fields are behind function pointers,
# so that one field's solve compiles the solver for all of them.

using PrecompileTools: @compile_workload, @setup_workload

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

"A solve and its reverse the way Python asks for them."
function rehearse(code::Int, p::Tuple, y0, name::String)
    T, times, results = eltype(y0), [0.0, 0.5, 1.0], zeros(13)
    ys, y0bar, pbar = zeros(T, size(y0)..., 3), zero(y0), map(zero, p)
    ysbar = ones(T, size(ys))
    GC.@preserve y0 ys times results p y0bar ysbar pbar begin
        grid = adapts(method(Symbol(name))) ? nothing : [0.3, 1.0]
        settings = (nothing, nothing, nothing, nothing, grid)  # tolerances, segments, controller
        integers = integers_of(y0, ys, times, results, nothing, settings..., 1, code, 0, p, 0, nothing)
        number = bridge_solve(
            Int(pointer(integers)), length(integers), name, 1.0e-3, 1.0e-3, NaN, 0.0, Inf, "", 1000, true, false, "stages",
            0, BLAS.get_num_threads()
        )
        table = zeros(Int(results[2]), 5)
        bridge_records(number, Int(pointer(table)))
        bar = ones(Int(results[2]))
        integers = integers_of(y0bar, ysbar, bar, bar, nothing, nothing, nothing, nothing, pbar)
        bridge_backward(number, Int(pointer(integers)), length(integers), "")
        bridge_free(number)
    end
    return nothing
end

@setup_workload begin
    # the operations of an exported network of one layer, for their own sake too
    function keep!(dy, t, y, p, cache, residuals)
        r1, (W, b) = residuals[1], p
        mul!(r1, transpose(W), y)
        @.. r1 = fast_tanh(r1 + (b + t * b))
        copyto!(dy, r1)
        return nothing
    end
    function back!(ybar, pbar, ct, t, y, p, cache, residuals)
        (; h1, h2) = cache
        r1, (W, b) = residuals[1], p
        @.. h1 = ct * (1 - r1^2)
        sum!(h2, h1)
        @.. pbar[2] += h2 * t
        mul!(pbar[1], y, transpose(h1), true, true)
        mul!(ybar, W, h1)
        return nothing
    end
    value!(dy, t, y, p, cache) = keep!(dy, t, y, p, cache, (dy,))
    function vjp!(ybar, pbar, ct, t, y, p, cache)
        value!(cache.h1, t, y, p, cache)
        return back!(ybar, pbar, ct, t, y, p, cache, (cache.h1,))
    end
    # Not `arrays`: this block is the module's own scope, which has a function of that name.
    memory = (buffers = (y, B) -> (h1 = similar(y), h2 = similar(y, size(y, 1))), residuals = B -> ((2, B),))
    @compile_workload begin
        for T in (Float64, Float32)
            y0, times, p = ones(T, 2, 2), [0.0, 0.5, 1.0], (T[0 1; -1 0], zeros(T, 2))
            layer = Dynamics(value!, vjp!, p, memory.buffers(y0, 2))
            for name in ("tsit5", "bs3", "dp5", "heun", "vern7", "rk4")
                CODES[0] = Code(@__MODULE__, value!, vjp!, memory, (keep!, back!))
                rehearse(0, p, y0, name)
            end
            for name in (:sosri, :sosri2, :sosra, :rkmil)
                sol = solve_recorded((layer, layer), y0, times; method = name)
                pullback(sol; ys = ones(T, 2, 2, 3))
            end
            fields = (Field(layer, (2, 2), Vector{T}; pbar = map(zero, p)),)
            here = local_step(method(:tsit5), Settings(; rtol = 1.0e-3, atol = 1.0e-3), fields, vec(y0), 0.0, 1.0)
            reverse!(vec(y0), here, fields, 1.0, 1.0)
        end
    end
    empty!(CODES)
    empty!(SAVED_SOLVES)
end
