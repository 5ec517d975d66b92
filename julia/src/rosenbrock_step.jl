# One step of a Rosenbrock method: its stages, its error estimate, its stiffness, its dense output.
# The Python twin is python/regnde/_engines/torch/rosenbrock_step.py: the same functions in the same order; what the
# steps of explicit methods have in common with these is in step.jl.
# Formulas: E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, IV.7.

"""
    RosenbrockStep(tableau, y, mass = I)

A step from time `t` to `t1 = t + h`: stages `k` (the u_i), the `arguments` of their slopes (the first is the state
`y` at the start), the new state `y1`, the `slope` at the start, `jacobian` and `by_time`, the field's derivatives
there, the `factors` of M - gamma h J, a scratch array, and the `mass` matrix M.
"""
mutable struct RosenbrockStep{V, M, F, W}
    t::Float64
    h::Float64
    t1::Float64
    const k::Vector{V}
    const arguments::Vector{V}
    const y1::V
    const slope::V
    const jacobian::M
    const by_time::V
    factors::F
    const scratch::V
    const mass::W
end

function RosenbrockStep(tableau::RosenbrockTableau, y::AbstractVector, mass = I)
    buffer(_ = 0) = fill!(similar(y), 0)
    stages, n = 1:tableau.stages, length(y)
    factors = lu!(fill!(similar(y, n, n), 0) + I)
    return RosenbrockStep(
        0.0, 0.0, 0.0, map(buffer, stages), map(buffer, stages), buffer(), buffer(), similar(y, n, n), buffer(), factors,
        buffer(), mass
    )
end

"Makes the step from `step.arguments[1]`."
function take_step!(step::RosenbrockStep, tableau::RosenbrockTableau, field, t, h, t1)
    (; k, arguments, y1, slope, jacobian, by_time, scratch, mass) = step
    step.t, step.h, step.t1 = t, h, t1
    y, T, (; gamma) = arguments[1], eltype(y1), tableau
    evaluate!(slope, field, t, y)
    derivatives!(jacobian, by_time, field, t, y, scratch)
    step.factors = lu!(matrix_of(mass) - T(h * gamma) * jacobian; check = false)
    for i in 1:tableau.stages
        if i > 1
            shifted!(arguments[i], y, k, view(tableau.a, i, :), 1, i - 1)
            evaluate!(scratch, field, stage_time(tableau.c[i], t, h, t1), arguments[i])
        end
        right, of_slope, scaled, of_time = k[i], i == 1 ? slope : scratch, T(h * gamma), T(h^2 * gamma * tableau.d[i])
        @.. right = scaled * of_slope + of_time * by_time
        add_coupled!(right, mass, view(tableau.coupling, i, :), k, gamma, i - 1, scratch)
        ldiv!(step.factors, right)
    end
    shifted!(y1, y, k, tableau.b, 1, tableau.stages)
    return step
end

"""
Stiffness estimate S = max_i sum_j |J_ij|, a bound of the eigenvalues (Gershgorin) and OrdinaryDiffEq's `eigen_est`.
With a mass matrix M^-1 J takes the place of J; NaN where that does not exist.
"""
function stiffness_estimate(step::RosenbrockStep, _)
    matrix = solved(step.mass, step.jacobian)
    return matrix === nothing ? NaN : wide(opnorm(matrix, Inf))
end

"What the method estimates of the step."
estimates!(step::RosenbrockStep, tableau, rtol, atol) =
    (; error = error_estimate!(step, tableau, rtol, atol), stiffness = stiffness_estimate(step, tableau))

"Its interpolant needs no further stages."
extra_stages!(step::RosenbrockStep, tableau, field; keep = false) = step

# --- where its formulas are those of an explicit step -----------------------------------------------

"What multiplies weighted sums of a step's `k`: its size, or 1 for stages, which are changes of the state."
scale_of(step::Step) = step.h
scale_of(::RosenbrockStep) = 1.0

"The slope at a step's start."
first_slope(step::Step) = step.k[1]
first_slope(step::RosenbrockStep) = step.slope
