# One explicit Runge-Kutta step: its stages, its error estimate, its stiffness estimate, its interpolant.
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

"Time of stage `i`; a stage at the step's end gets exactly `t1`."
stage_time(step::Step, tableau, i) = tableau.c[i] == 1.0 ? step.t1 : step.t + tableau.c[i] * step.h

"Sets `out = h * sum(weights[j] * terms[j])` over the first `count` terms."
weighted!(out, weights, terms, h, count = length(weights)) = accumulate!(fill!(out, 0), weights, terms, h, count)

"Sets `out = y + h * sum(weights[j] * terms[j])` over the first `count` terms."
shifted!(out, y, weights, terms, h, count = length(weights)) =
    accumulate!(copyto!(out, y), weights, terms, h, count)

"Makes the step from `step.arguments[1]` with the first slope `step.k[1]` given."
function take_step!(step::Step, tableau::Tableau, field, t, h, t1)
    step.t, step.h, step.t1 = t, h, t1
    foreach(i -> take_stage!(step, tableau, field, i), 2:tableau.stages)
    tableau.fsal || shifted!(step.y1, step.arguments[1], tableau.b, step.k, h, tableau.stages)
    return step
end

function take_stage!(step::Step, tableau::Tableau, field, i)
    argument!(step, tableau, i)
    return evaluate!(step.k[i], field, stage_time(step, tableau, i), step.arguments[i], step.residuals[i])
end

argument!(step::Step, tableau, i) =
    shifted!(step.arguments[i], step.arguments[1], view(tableau.a, i, :), step.k, step.h, i - 1)

"The error that is allowed at an entry: atol + rtol max(|y|, |y1|)."
@inline tolerance(y, y1, rtol, atol) = atol + rtol * max(abs(y), abs(y1))

"The embedded error h sum_j btilde_j k_j over the tolerance, entrywise."
error_ratio!(out, step::Step, tableau, rtol, atol) = over_tolerance!(
    weighted!(out, tableau.btilde, step.k, step.h, tableau.stages), step.arguments[1], step.y1, rtol, atol
)

function over_tolerance!(error, y, y1, rtol, atol)
    rt, at = eltype(error)(rtol), eltype(error)(atol)
    @.. error = error / tolerance(y, y1, rt, at)
    return error
end

"""
    rms(x)

Root mean square over all entries, a double precision number whatever the state is; 0 for an empty
array. Where squares overflow or vanish it is s rms(x / s) with s = max |x|: the units of `x` do not
matter.
"""
function rms(x)
    length(x) == 0 && return 0.0
    total = sum(e -> abs2(wide(e)), x)
    SAFE_SQUARES[1] < total < SAFE_SQUARES[2] && return sqrt(total / length(x))
    s = wide(maximum(abs, x))
    (s == 0 || !isfinite(s)) && return s
    return s * sqrt(sum(e -> abs2(e / s), x) / length(x))
end

const SAFE_SQUARES = (1.0e-280, 1.0e300)  # sums of squares of which no term that counts is out of range

"Local error estimate E = rms(r), r left in `step.scratch` by [`error_ratio!`](@ref)."
error_estimate!(step::Step, tableau, rtol, atol) = rms(error_ratio!(step.scratch, step, tableau, rtol, atol))

"Rms of a change of the slope over that of the state that caused it; 0 where the state did not change."
function stiffness_quotient(slope_change, state_change)
    size = rms(state_change)
    return size == 0 ? 0.0 : rms(slope_change) / size
end

"S = rms(k_s - k_{s-1}) / rms(g_s - g_{s-1}) of the last two stages, which both lie at t + h."
function stiffness_estimate(step::Step, tableau::Tableau)
    (; k, arguments) = step
    n = tableau.stages
    return stiffness_quotient(difference(k[n], k[n - 1]), difference(arguments[n], arguments[n - 1]))
end

"The further stages that the interpolant needs; with `keep` the reverse will go over them."
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

"Sets `out` to the state at t + theta h; the interpolant's stages have to be there."
dense_output!(out, step::Step, tableau, theta) =
    shifted!(out, step.arguments[1], dense_weights(tableau, theta), step.k, step.h)

"Weights of the stages in the state at t + theta h."
dense_weights(tableau::Tableau, theta) = tableau.dense * [theta^p for p in axes(tableau.dense, 2)]

# --- memory of the stages --------------------------------------------------------------------------

"Gives the step's stages arrays for their residuals."
function keep_residuals!(step::Step, tableau::Tableau, field)
    foreach(i -> step.residuals[i] = residuals(field), 1:tableau.stages)
    return step
end

"The step as it is now; `renew!` then gives the next one other arrays."
function snapshot(step::Step, tableau::Tableau)
    (; t, h, t1, k, arguments, residuals, y1, scratch) = step
    stages = 1:tableau.stages
    return Step(t, h, t1, k[stages], arguments[stages], residuals[stages], y1, scratch)
end

"Arrays for the step after one whose arrays are held elsewhere; an FSAL method's first stage stays."
function renew!(step::Step{V}, tableau::Tableau, field) where {V}
    n, len = tableau.stages, length(step.scratch)
    tableau.fsal && carry_over!(step, n)
    for i in (tableau.fsal ? 2 : 1):n
        step.k[i], step.arguments[i], step.residuals[i] = acquire!(V, len), acquire!(V, len), residuals(field)
    end
    step.y1 = tableau.fsal ? step.arguments[n] : acquire!(V, len)
    return step
end

"Makes stage `n` the first one."
function carry_over!(step::Step, n)
    step.k[1], step.arguments[1], step.residuals[1] = step.k[n], step.arguments[n], step.residuals[n]
    return step
end

"Releases the memory of stages from `first` on, and of the step's end."
function release!(step::Step, first = 1)
    (; k, arguments, residuals) = step
    any(i -> isassigned(arguments, i) && arguments[i] === step.y1, eachindex(arguments)) || release!(step.y1)
    for i in first:length(arguments)
        isassigned(arguments, i) && release!(arguments[i])
        i <= length(k) && isassigned(k, i) && release!(k[i])
        i <= length(residuals) && residuals[i] !== nothing && foreach(release!, residuals[i])
    end
    return nothing
end
