# One step of a stochastic Runge-Kutta method with diagonal noise: its noise, its stages, its error and
# stiffness estimates. The Python twin is python/regnde/_engines/torch/sde_step.py: the same functions in
# the same order. Formulas: A. Roessler, SIAM J. Numer. Anal. 48 (2010) 922-952.

"""
    SDEStep(tableau, y)

Buffers of one step from time `t` to `t + h`: drifts `k` at `H0`, diffusions `g` at `H1`, their
residuals, the increments `dW`, `dZ` of the two Brownian motions and the iterated integrals formed from
them, the diffusion's part `E2` of the error, the new state `y1` and two scratch arrays. `H0[1]` is the
state.
"""
mutable struct SDEStep{V}
    t::Float64
    h::Float64
    const k::Vector{V}
    const g::Vector{V}
    const k_residuals::Vector{Any}
    const g_residuals::Vector{Any}
    const H0::Vector{V}
    const H1::Vector{V}
    const y1::V
    const dW::V
    const dZ::V
    const double::V
    const mixed::V
    const triple::V
    const E2::V
    const scratch::V
    const sum::V
end

function SDEStep(tableau::NoiseTableau, y)
    many() = [fill!(similar(y), 0) for _ in 1:tableau.stages]
    k, g, H0 = many(), many(), many()
    H1 = tableau.shared ? H0 : [H0[1], (similar(y) for _ in 2:tableau.stages)...]
    none() = Vector{Any}(nothing, tableau.stages)
    return SDEStep(0.0, 0.0, k, g, none(), none(), H0, H1, ntuple(_ -> fill!(similar(y), 0), 9)...)
end

"Gives the stages arrays for their residuals."
function keep_residuals!(step::SDEStep, tableau::NoiseTableau, drift, diffusion)
    for i in 1:tableau.stages
        i <= tableau.drifts && (step.k_residuals[i] = residuals(drift))
        step.g_residuals[i] = residuals(diffusion)
    end
    return step
end

"The iterated integrals of the step: double I_(1,1)/sqrt(h), mixed I_(1,0)/h, triple I_(1,1,1)/h."
function step_noise!(step::SDEStep)
    T, (; h, dW, dZ, double, mixed, triple) = eltype(step.dW), step
    size, root, third = T(h), T(sqrt(abs(h))), T(1 / sqrt(3))
    @.. double = (dW^2 - size) / (2 * root)
    @.. mixed = (dW + dZ * third) / 2
    @.. triple = (dW^3 - 3 * dW * size) / (6 * size)
    return step
end

"Makes the step from `step.H0[1]` with the increments `step.dW`, `step.dZ`."
function take_sde_step!(step::SDEStep, tableau::NoiseTableau, drift, diffusion, t, h)
    step.t, step.h = t, h
    step_noise!(step)
    (; k, g, H0, H1, y1, E2) = step
    y, n = H0[1], tableau.stages
    for i in 1:n
        if i > 1 && (i <= tableau.drifts || tableau.shared)
            shifted!(H0[i], y, view(tableau.A0, i, :), k, h, i - 1)
            add_noise!(H0[i], step, step.mixed, view(tableau.B0, i, :), i - 1)
        end
        if i > 1 && !tableau.shared
            shifted!(H1[i], y, view(tableau.A1, i, :), k, h, i - 1)
            accumulate!(H1[i], view(tableau.B1, i, :), g, sqrt(abs(h)), i - 1)
        end
        i <= tableau.drifts && evaluate!(k[i], drift, t + tableau.c0[i] * h, H0[i], step.k_residuals[i])
        evaluate!(g[i], diffusion, t + tableau.c1[i] * h, H1[i], step.g_residuals[i])
    end
    fill!(E2, 0)
    add_noise!(E2, step, step.mixed, tableau.b3, n)
    add_noise!(E2, step, step.triple, tableau.b4, n)
    shifted!(y1, y, tableau.alpha, k, h)
    add!(y1, one(eltype(y)), E2)
    add_noise!(y1, step, step.dW, tableau.b1, n)
    add_noise!(y1, step, step.double, tableau.b2, n)
    return step
end

"Adds `integral .* sum(weights[j] * g[j])` over the first `count` diffusions."
function add_noise!(out, step::SDEStep, integral, weights, count)
    next_term(weights, 1, count) > count && return out
    total = weighted!(step.sum, weights, step.g, 1.0, count)
    @.. out += integral * total
    return out
end

"The error over the tolerance, (delta E1 + E2) / (atol + rtol max(|y|, |y1|)) with E1 = h sum e1 k, entrywise."
function sde_error_ratio!(out, step::SDEStep, tableau::NoiseTableau, rtol, atol)
    accumulate!(copyto!(out, step.E2), tableau.e1, step.k, tableau.delta * step.h)
    return over_tolerance!(out, step.H0[1], step.y1, rtol, atol)
end

"Local error estimate E = rms(r), r left in `step.scratch` by [`sde_error_ratio!`](@ref)."
sde_error_estimate!(step::SDEStep, tableau, rtol, atol) =
    rms(sde_error_ratio!(step.scratch, step, tableau, rtol, atol))

"S = rms(k_s - k_{s-1}) / rms(H_s - H_{s-1}) of the drift's last two stages, which lie at t + h."
function sde_stiffness_estimate(step::SDEStep, tableau::NoiseTableau)
    (; k, H0), n = step, tableau.drifts
    return stiffness_quotient(difference(k[n], k[n - 1]), difference(H0[n], H0[n - 1]))
end
