# Coefficients of the explicit Runge-Kutta methods, read from tableaux.toml, which names their sources and
# says what follows from what. The Python package reads the same file (`_tableau.py`) and checks it.

const COEFFICIENTS = let file = joinpath(@__DIR__, "tableaux.toml")
    include_dependency(file)
    TOML.parsefile(file)
end

"""
    Tableau

An explicit Runge-Kutta method with stages k_i = f(t + c_i h, y + h sum_j a_ij k_j). The first
`stages` of them make the step; the `extra` ones after that serve the interpolant alone.

  - `b`: weights of the new state (equal to the last row of the step's `a` when `fsal`)
  - `btilde`: weights of the error, embedded minus main
    zeros for a method of fixed step size
  - `dense`: row j holds the coefficients of theta, theta^2, ... in stage j's weight of the interpolant
  - `pair`: the last two stages both lie at t + h, so that their quotient estimates the stiffness
"""
struct Tableau
    stages::Int
    extra::Int
    a::Matrix{Float64}
    c::Vector{Float64}
    b::Vector{Float64}
    btilde::Vector{Float64}
    dense::Matrix{Float64}
    fsal::Bool
    pair::Bool
end

"""
    RosenbrockTableau(name)

The Rosenbrock method of that name in tableaux.toml, in the form that multiplies no vector by the Jacobian: for
y' = f(t, y) the stages u_i solve

    (1 / (gamma h) - J) u_i = f(t + c_i h, y + sum_j a_ij u_j) + sum_j (C_ij / h) u_j + d_i h df/dt

with C the `coupling`; the new state is y + sum_i b_i u_i, its error estimate sum_i btilde_i u_i. Row i of `dense` holds
the coefficients of theta, theta^2, ... in the weight of u_i in the interpolant.
"""
struct RosenbrockTableau
    stages::Int
    gamma::Float64
    a::Matrix{Float64}
    coupling::Matrix{Float64}
    b::Vector{Float64}
    btilde::Vector{Float64}
    c::Vector{Float64}
    d::Vector{Float64}
    dense::Matrix{Float64}
    fsal::Bool
end

"Total number of stages, the interpolant's included."
total(tableau::Tableau) = tableau.stages + tableau.extra
total(tableau::RosenbrockTableau) = tableau.stages

"The exact value of a number, or of a fraction such as \"1/3\"."
exact(x::Real) = Rational{BigInt}(x)
exact(x::AbstractString) = (//)(parse.(BigInt, split(x, '/'))...)

"The numbers of a row, with zeros up to `n`."
function filled(row, n)
    numbers = zeros(n)
    for (i, x) in enumerate(row)
        numbers[i] = exact(x)
    end
    return numbers
end

"The same for rows, as an m x n matrix."
function filled(rows, m, n)
    numbers = zeros(m, n)
    for (i, row) in enumerate(rows)
        numbers[i, :] = filled(row, n)
    end
    return numbers
end

"Stage times: the row sums, rounded once; where they are 1 to rounding, exactly 1."
function row_sums(rows)
    c = Float64[sum(exact, row; init = big(0) // 1) for row in rows]
    c[abs.(c .- 1) .< 1.0e-10] .= 1.0
    return c
end

"""
Cubic Hermite interpolant as weights of the stages (the first is the slope at the start, the last the
one at the end), plus theta^2 (1 - theta)^2 times `quartic`, the correction of dp5.
"""
function hermite(b, quartic = nothing)
    weights = b * [0.0 3.0 -2.0]
    weights[1, :] += [1.0, -2.0, 1.0]
    weights[end, :] += [0.0, -1.0, 1.0]
    quartic === nothing && return weights
    return [weights zeros(length(b))] + quartic * [0.0 1.0 -2.0 1.0]
end

"""
    Tableau(name)

The method of that name in tableaux.toml.
"""
function Tableau(name::Symbol)
    data = COEFFICIENTS["ode"][String(name)]
    steps, weights = data["a"], get(data, "b", last(data["a"]))
    stages = length(steps)
    c = haskey(data, "c") ? filled(data["c"], stages) : row_sums(steps)
    fsal = stages > 1 && c[stages] == 1 && filled(weights, stages) == filled(last(steps), stages)
    # Hermite's interpolant ends with the slope at the new state, which is a further stage unless the method is FSAL
    extra = get(data, "extra_a", fsal || haskey(data, "dense") ? [] : [weights])
    n = stages + length(extra)
    b = filled(weights, n)
    quartic = haskey(data, "quartic") ? filled(data["quartic"], n) : nothing
    dense = haskey(data, "dense") ? filled(data["dense"], n, maximum(length, data["dense"])) : hermite(b, quartic)
    btilde = filled(get(data, "btilde", []), n)
    pair = any(!iszero, btilde) && stages > 1 && c[stages - 1] == c[stages] == 1
    return Tableau(
        stages, length(extra), filled([steps; extra], n, n), [c; row_sums(extra)], b, btilde, dense, fsal, pair
    )
end

const TSIT5 = Tableau(:tsit5)

function RosenbrockTableau(name::Symbol)
    data = COEFFICIENTS["rosenbrock"][String(name)]
    n = length(data["b"])
    a, b, c = filled(data["a"], n, n), filled(data["b"], n), filled(data["c"], n)
    if haskey(data, "dense")
        dense = filled(data["dense"], n, maximum(length, data["dense"]))
    else  # theta y1 + theta (1 - theta) (h_1 + theta h_2 + ...)
        rows = permutedims(filled(data["h"], length(data["h"]), n))
        dense = [b zero(rows)] + [rows zeros(n)] - [zeros(n) rows]
    end
    fsal = c[n] == 1 && a[n, :] == b
    return RosenbrockTableau(
        n, data["gamma"], a, filled(data["coupling"], n, n), b, filled(data["btilde"], n), c, filled(data["d"], n), dense,
        fsal
    )
end
