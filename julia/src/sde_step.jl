# One step of a stochastic Runge-Kutta method with diagonal noise: its noise, its stages, its error and
# stiffness estimates. The Python twin is python/regnde/_engines/torch/sde_step.py: the same functions in
# the same order. Formulas: A. Roessler, SIAM J. Numer. Anal. 48 (2010) 922-952.

"""
    SDEStep(tableau, y)

Buffers of one step from time `t` to `t1 = t + h`: drifts `k` at `H0`, diffusions `g` at `H1`, their
residuals, the increments `dW`, `dZ` of the two Brownian motions and the iterated integrals formed from
them, the diffusion's part `E2` of the error, the new state `y1` and a scratch array. `H0[1]` is the
state.
"""
mutable struct SDEStep{V}
    t::Float64
    h::Float64
    t1::Float64
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
end

function SDEStep(tableau::NoiseTableau, y)
    many() = [fill!(similar(y), 0) for _ in 1:tableau.stages]
    k, g, H0 = many(), many(), many()
    H1 = tableau.shared ? H0 : [H0[1], (similar(y) for _ in 2:tableau.stages)...]
    none() = Vector{Any}(nothing, tableau.stages)
    return SDEStep(0.0, 0.0, 0.0, k, g, none(), none(), H0, H1, ntuple(_ -> fill!(similar(y), 0), 8)...)
end

"Gives the stages arrays for their residuals."
function keep_residuals!(step::SDEStep, tableau::NoiseTableau, drift, diffusion)
    for i in 1:tableau.stages
        i <= tableau.drifts && (step.k_residuals[i] = residuals(drift))
        step.g_residuals[i] = residuals(diffusion)
    end
    return step
end

"""
The iterated integrals of the step: double J_1 = I_(1,1)/sqrt(h), mixed J_2 = I_(1,0)/h = dW/2 + H and
triple J_3 = I_(1,1,1)/h, with the space-time Levy area H = dZ / (2 sqrt(3)).
"""
function step_noise!(step::SDEStep, h)
    T, (; dW, dZ, double, mixed, triple) = eltype(step.dW), step
    size, root, area = T(h), T(sqrt(h)), T(1 / (2 * sqrt(3)))
    @.. mixed = dZ * area + dW / 2
    @.. double = (dW^2 - size) / (2 * root)
    @.. triple = (dW^2 - 3 * size) * dW / (6 * size)
    return step
end

"Makes the step from `step.H0[1]` with the increments `step.dW`, `step.dZ`."
function take_sde_step!(step::SDEStep, tableau::NoiseTableau, drift, diffusion, t, h, t1)
    step.t, step.h, step.t1 = t, h, t1
    step_noise!(step, h)
    (; k, g, H0, H1, y1, E2, dW, double, mixed, triple) = step
    (; drifts, shared, A0, A1, B0, B1) = tableau
    y, T, root = H0[1], eltype(y1), sqrt(h)
    for i in 1:tableau.stages
        if i > 1 && (i <= drifts || shared)
            shifted!(H0[i], y, k, view(A0, i, :), h, i - 1)
            with_noise!(H0[i], mixed, g, view(B0, i, :), i - 1)
        end
        if i > 1 && !shared
            shifted!(H1[i], y, k, view(A1, i, :), h, i - 1)
            accumulate!(H1[i], view(B1, i, :), g, root, i - 1)
        end
        i <= drifts && evaluate!(k[i], drift, stage_time(tableau.c0[i], t, h, t1), H0[i], step.k_residuals[i])
        evaluate!(g[i], diffusion, stage_time(tableau.c1[i], t, h, t1), H1[i], step.g_residuals[i])
    end
    shifted!(y1, y, k, tableau.alpha, h)
    fill!(E2, 0)
    for (i, g_i) in enumerate(g)
        b1, b2, b3, b4 = T(tableau.b1[i]), T(tableau.b2[i]), T(tableau.b3[i]), T(tableau.b4[i])
        @.. y1 += (b1 * dW + b2 * double + b3 * mixed + b4 * triple) * g_i
        @.. E2 += (b3 * mixed + b4 * triple) * g_i
    end
    return step
end

"Adds `J_2 * sum(weights[j] * g[j])` over the first `count` diffusions."
function with_noise!(out, mixed, g, weights, count)
    for j in 1:count
        weight, g_j = eltype(out)(weights[j]), g[j]
        weight == 0 || (@.. out += weight * mixed * g_j)
    end
    return out
end

"""
The error over the tolerance, (delta E_1 + E_2) / (atol + rtol max(|y|, |y1|)) with E_1 = h sum k_i,
entrywise.
"""
function sde_error_ratio!(out, step::SDEStep, tableau::NoiseTableau, rtol, atol)
    shifted!(out, step.E2, step.k, tableau.e1, tableau.delta * step.h)
    return divided!(out, step.H0[1], step.y1, rtol, atol)
end

"Local error estimate E = rms of [`sde_error_ratio!`](@ref), which is left in `step.scratch`."
sde_error_estimate!(step::SDEStep, tableau, rtol, atol) =
    rms(sde_error_ratio!(step.scratch, step, tableau, rtol, atol))

"Stiffness estimate S = rms(k_s - k_{s-1}) / rms(H_s - H_{s-1}) of the drift, whose last two stages lie at t + h."
function sde_stiffness_estimate(step::SDEStep, tableau::NoiseTableau)
    (; k, H0), n = step, tableau.drifts
    return stiffness_quotient(difference(k[n], k[n - 1]), difference(H0[n], H0[n - 1]))
end

"What the method estimates of the step; NaN where it has no estimate."
function sde_estimates!(step::SDEStep, tableau::NoiseTableau, rtol, atol)
    error = tableau.adaptive ? sde_error_estimate!(step, tableau, rtol, atol) : NaN
    return (; error, stiffness = tableau.pair ? sde_stiffness_estimate(step, tableau) : NaN)
end
