# What a first solve from Python needs, compiled with the package: fields are behind function pointers,
# so that one field's solve compiles the solver for all of them.

using PrecompileTools: @compile_workload, @setup_workload

"The words of [`Reader`](@ref) for arrays (or `nothing`), numbers and lists of arrays."
function words_of(parts...)
    list = Int[]
    for part in parts
        if part isa Int
            push!(list, part)
        elseif part === nothing
            push!(list, 1, -1, 0)
        elseif part isa Tuple
            append!(list, length(part), words_of(part...))
        else
            push!(list, findfirst(==(eltype(part)), collect(ELTYPES)), Int(pointer(part)), ndims(part), size(part)...)
        end
    end
    return list
end

"A solve and its reverse the way Python asks for them."
function rehearse(code::Int, p::Tuple, y0, name::String)
    T, times, results = eltype(y0), [0.0, 0.5, 1.0], zeros(9)
    ys, y0bar, pbar = zeros(T, size(y0)..., 3), zero(y0), map(zero, p)
    ysbar = ones(T, size(ys))
    GC.@preserve y0 ys times results p y0bar ysbar pbar begin
        words = words_of(y0, ys, times, results, nothing, 1, code, p)
        number = bridge_solve(
            Int(pointer(words)), length(words), name, 1.0e-3, 1.0e-3, NaN, 1000, true, "stages", 0, BLAS.get_num_threads()
        )
        table = zeros(Int(results[2]), 5)
        bridge_records(number, Int(pointer(table)))
        bar = ones(Int(results[2]))
        words = words_of(y0bar, ysbar, bar, bar, nothing, nothing, pbar)
        bridge_backward(number, Int(pointer(words)), length(words))
        bridge_free(number)
    end
    return nothing
end

@setup_workload begin
    value!(dy, t, y, p, _) = (dy .= p[1] .* y; nothing)
    vjp!(ybar, pbar, ct, t, y, p, _) = (ybar .= p[1] .* ct; pbar[1] .+= sum(ct .* y); nothing)
    @compile_workload begin
        for T in (Float64, Float32)
            decay = Dynamics(value!, vjp!, (T[-1],), nothing)
            y0, times = ones(T, 2, 2), [0.0, 0.5, 1.0]
            for name in ("tsit5", "bs3", "dp5", "vern7")
                CODES[0] = Code(@__MODULE__, value!, vjp!, (y, p) -> nothing, nothing, nothing)
                rehearse(0, (T[-1],), y0, name)
            end
            for name in (:sosri, :sosri2, :sosra)
                sol = solve_recorded((decay, decay), y0, times; method = name)
                pullback(sol; ys = ones(T, 2, 2, 3))
            end
            fields = (Field(decay, (2, 2), Vector{T}; pbar = (zeros(T, 1),)),)
            step = local_step(method(:tsit5), Settings(; rtol = 1.0e-3, atol = 1.0e-3), fields, vec(y0), 0.0, 1.0)
            reverse!(vec(y0), step, fields, 1.0, 1.0)
        end
    end
    empty!(CODES)
    empty!(KEPT)
end
