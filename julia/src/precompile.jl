# What a first solve from Python needs, compiled with the package: fields are behind function pointers,
# so that one field's solve compiles the solver for all of them. Another method compiles OrdinaryDiffEq's code for it at
# its first use, in one to five seconds.

using PrecompileTools: @compile_workload

@compile_workload begin
    entries()
    foreach(((name, (_, types)),) -> precompile(getfield(@__MODULE__, name), types), ENTRIES)
    for T in (Float64, Float32)
        rehearse(T, "tsit5")
        y0, times, p = layer_data(T)
        layer = dynamics(layer_code(), y0, p)
        fields = (Field(layer, (2, 2), Vector{T}; pbar = map(zero, p)),)
        here = local_step(method(:tsit5), Settings(; rtol = 1.0e-3, atol = 1.0e-3), fields, vec(y0), 0.0, 1.0)
        reverse!(vec(y0), here, fields, 1.0, 1.0)
    end
    empty_pool!()
end
