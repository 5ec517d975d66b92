# Coefficients of the stochastic Runge-Kutta methods for diagonal Ito noise, read from tableaux.toml.

"""
    NoiseTableau

A stochastic Runge-Kutta method with stages k_i = f(t + c0_i h, H0_i), g_i = g(t + c1_i h, H1_i),

    H0_i = y + h sum_j A0_ij k_j + chi2 sum_j B0_ij g_j
    H1_i = y + h sum_j A1_ij k_j + sqrt(h) sum_j B1_ij g_j     (H0_i where `shared`)
    y1   = y + h sum alpha k + dW sum b1 g + chi1 sum b2 g + E2,  E2 = chi2 sum b3 g + chi3 sum b4 g

and the error (delta E1 + E2) over the tolerance with E1 = h sum e1 k. `drifts` of the stages have a
drift. `pair`: the last two drifts estimate the stiffness.
"""
struct NoiseTableau
    stages::Int
    drifts::Int
    A0::Matrix{Float64}
    A1::Matrix{Float64}
    B0::Matrix{Float64}
    B1::Matrix{Float64}
    c0::Vector{Float64}
    c1::Vector{Float64}
    alpha::Vector{Float64}
    b1::Vector{Float64}
    b2::Vector{Float64}
    b3::Vector{Float64}
    b4::Vector{Float64}
    e1::Vector{Float64}
    delta::Float64
    shared::Bool
    adaptive::Bool
    pair::Bool
end

"""
    NoiseTableau(name)

The method of that name in tableaux.toml.
"""
function NoiseTableau(name::Symbol)
    data = COEFFICIENTS["sde"][String(name)]
    drifts, stages, shared = length(data["a0"]), length(data["beta1"]), !haskey(data, "a1")
    row(key) = filled(get(data, key, []), stages)
    square(key) = filled(get(data, key, []), stages, stages)
    c0, c1 = filled(row_sums(data["a0"]), stages), shared ? row("c1") : row_sums(data["a1"])
    adaptive = haskey(data, "delta")
    return NoiseTableau(
        stages, drifts, square("a0"), square("a1"), square("b0"), square("b1"), c0, c1,
        row("alpha"), row("beta1"), row("beta2"), row("beta3"), row("beta4"),
        adaptive ? filled(ones(drifts), stages) : Float64[], exact(get(data, "delta", 0)), shared, adaptive,
        adaptive && c0[drifts - 1] == c0[drifts] == 1
    )
end
