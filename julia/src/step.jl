# One explicit Runge-Kutta step: its stages, its error estimate, its stiffness estimate, its dense output.
# The Python twin is python/regnde/_engines/torch/step.py: the same functions in the same order.
# Formulas: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.4-6; the
# stiffness quotient: Hairer, Wanner II, IV.2.

"""
    Step(tableau, y)

A step from time `t` to `t1 = t + h`: slopes `k`, their `arguments` (the first is the state `y` at the
start), the evaluations' `residuals`, the new state `y1` (for an FSAL method the last argument itself)
and a scratch array. The interpolant's stages get memory when they are first needed.
"""
mutable struct Step{V}
    t::Float64
    h::Float64
    t1::Float64
    const k::Vector{V}
    const arguments::Vector{V}
    const residuals::Vector{Any}
    y1::V
    const scratch::V
end

function Step(tableau::Tableau, y::V) where {V}
    step = empty_step(tableau, y)
    for i in 1:tableau.stages
        step.k[i], step.arguments[i] = acquire!(V, length(y)), acquire!(V, length(y))
    end
    step.y1 = tableau.fsal ? step.arguments[tableau.stages] : acquire!(V, length(y))
    return step
end

"A step of which only the scratch array has memory."
function empty_step(tableau::Tableau, y::V) where {V}
    n, scratch = total(tableau), acquire!(V, length(y))
    return Step(0.0, 0.0, 0.0, Vector{V}(undef, n), Vector{V}(undef, n), Vector{Any}(nothing, n), scratch, scratch)
end

"Time of a stage at `c` of the step from `t` to `t1`; a stage at the step's end gets exactly `t1`."
stage_time(c, t, h, t1) = c == 1 ? t1 : t + c * h

"Sets `out = h * sum(weights[j] * k[j])` over the first `count` slopes."
weighted!(out, k, weights, h, count = length(weights)) = accumulate!(fill!(out, 0), weights, k, h, count)

"Sets `out = y + h * sum(weights[j] * k[j])` over the first `count` slopes."
shifted!(out, y, k, weights, h, count = length(weights)) = accumulate!(copyto!(out, y), weights, k, h, count)

"Makes the step from `step.arguments[1]` with the first slope `step.k[1]` given."
function take_step!(step::Step, tableau::Tableau, field, t, h, t1)
    step.t, step.h, step.t1 = t, h, t1
    foreach(i -> take_stage!(step, tableau, field, i), 2:tableau.stages)
    tableau.fsal || shifted!(step.y1, step.arguments[1], step.k, tableau.b, h, tableau.stages)
    return step
end

function take_stage!(step::Step, tableau::Tableau, field, i)
    (; t, h, t1, k, arguments, residuals) = step
    shifted!(arguments[i], arguments[1], k, view(tableau.a, i, :), h, i - 1)
    return evaluate!(k[i], field, stage_time(tableau.c[i], t, h, t1), arguments[i], residuals[i])
end

"The error that is allowed in an entry of some size, atol + rtol size."
@inline tolerance(size, rtol, atol) = atol + rtol * size

"The embedded error over the tolerance, r = (h sum btilde_j k_j) / (atol + rtol max(|y|, |y1|)), entrywise."
function error_ratio!(out, step, tableau, rtol, atol)
    weighted!(out, step.k, tableau.btilde, scale_of(step), tableau.stages)
    return divided!(out, step.arguments[1], step.y1, rtol, atol)
end

"The larger of |y| and |y1|."
@inline larger(y, y1) = max(abs(y), abs(y1))

"Divides an error by its tolerance, entrywise."
function divided!(error, y, y1, rtol, atol)
    rt, at = converted(realtype(error), rtol), converted(realtype(error), atol)
    @.. error = error / tolerance(larger(y, y1), rt, at)
    return error
end

"""
    rms(x)

Root mean square over all entries, a double precision number whatever the state is; 0 for an empty
array. Where squares overflow or vanish it is s rms(x / s), s the power of two below max |x|: the units
of `x` do not matter, and powers of two among them do not even change the rounding.
"""
function rms(x)
    length(x) == 0 && return 0.0
    total = sum(e -> abs2(wide(e)), x)
    SAFE_SQUARES[1] < total < SAFE_SQUARES[2] && return sqrt(total / length(x))
    largest = wide(maximum(abs, x))
    (largest == 0 || !isfinite(largest)) && return largest
    s = exp2(exponent(largest))
    return s * sqrt(sum(e -> abs2(e / s), x) / length(x))
end

const SAFE_SQUARES = (1.0e-280, 1.0e300)  # sums of squares of which no term that counts is out of range

"Local error estimate E = rms(r), r as in [`error_ratio!`](@ref), which is left in `step.scratch`."
error_estimate!(step, tableau, rtol, atol) = rms(error_ratio!(step.scratch, step, tableau, rtol, atol))

"Rms of a change of the slope over that of the state; 0 where the state did not change."
function stiffness_quotient(slope_change, state_change)
    size = rms(state_change)
    return size == 0 ? 0.0 : rms(slope_change) / size
end

"""
Stiffness estimate S = rms(k_s - k_{s-1}) / rms(g_s - g_{s-1}); 0 where the denominator is 0. Both
stages lie at t + h.
"""
function stiffness_estimate(step::Step, tableau::Tableau)
    (; k, arguments), n = step, tableau.stages
    return stiffness_quotient(difference(k[n], k[n - 1]), difference(arguments[n], arguments[n - 1]))
end

"What the method estimates of the step; NaN where it has no estimate."
function estimates!(step::Step, tableau::Tableau, rtol, atol)
    error = error_estimate!(step, tableau, rtol, atol)
    return (; error, stiffness = tableau.pair ? stiffness_estimate(step, tableau) : NaN)
end

"The further stages that the dense output needs; with `keep` the reverse will go over them."
function extra_stages!(step::Step{V}, tableau::Tableau, field; keep = false) where {V}
    for i in (tableau.stages + 1):total(tableau)
        if !isassigned(step.k, i)
            step.k[i], step.arguments[i] = acquire!(V, length(step.scratch)), acquire!(V, length(step.scratch))
            keep && (step.residuals[i] = residuals(field))
        end
        take_stage!(step, tableau, field, i)
    end
    return step
end

"Sets `out` to the state at t + theta h, after [`extra_stages!`](@ref)."
dense_output!(out, step, tableau, theta) =
    shifted!(out, step.arguments[1], step.k, dense_weights(tableau, theta), scale_of(step))

"Weights of the stages in the state at t + theta h."
dense_weights(tableau, theta) = tableau.dense * [theta^p for p in axes(tableau.dense, 2)]
