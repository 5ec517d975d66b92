# What a first solve from Python needs, compiled with the package: fields are behind function pointers,
# so that one field's solve compiles the solver for all of them.

using PrecompileTools: @compile_workload, @setup_workload

@setup_workload begin
    value!(dy, t, y, p, _) = (dy .= p[1] .* y; nothing)
    vjp!(ybar, pbar, ct, t, y, p, _) = (ybar .= p[1] .* ct; pbar[1] .+= sum(ct .* y); nothing)
    @compile_workload begin
        for T in (Float64, Float32)
            decay = Dynamics(value!, vjp!, (T[-1],), nothing)
            y0, times = ones(T, 2, 2), [0.0, 0.5, 1.0]
            for name in (:tsit5, :bs3, :dp5, :vern7)
                sol = solve_recorded(decay, y0, times; method = name, rtol = 1.0e-3, atol = 1.0e-3)
                pullback(sol; ys = ones(T, 2, 2, 3), error = ones(length(sol.error)))
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
end
