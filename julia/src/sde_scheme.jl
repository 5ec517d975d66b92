# One step of a method for SDEs that is no tableau of Roessler's: its noise, its evaluations, its error estimate.
# The Python twin is python/regnde/_engines/torch/sde_scheme.py. There a step is a function, here it is a list, so that
# its reverse follows from it. Sources: P. E. Kloeden, E. Platen, Numerical Solution of Stochastic Differential
# Equations (1992), 11.1; K. Burrage, P. M. Burrage, T. Tian, Proc. R. Soc. Lond. A 460 (2004) 373-402; the estimates:
# H. Lamba, J. Comput. Appl. Math. 161 (2003) 417-430, in the forms of StochasticDiffEq.jl.

"""
    Combination(; state = false, drifts = [], diffusions = [])

The state, if asked for, and what is added to it: `h * weight * value` for each pair (evaluation, weight) of `drifts`, and
`weight * value * vector` for each (evaluation, vector, weight) of `diffusions`, with a vector of [`NOISES`](@ref).
"""
Base.@kwdef struct Combination
    state::Bool = false
    drifts::Vector{Tuple{Int, Float64}} = []
    diffusions::Vector{Tuple{Int, Symbol, Float64}} = []
end

"An evaluation at `t + c h`: of the drift or of the diffusion, at which of the arguments (the first is the state)."
struct Evaluation
    of_drift::Bool
    c::Float64
    argument::Int
end

drift_at(c, argument = 1) = Evaluation(true, c, argument)
diffusion_at(c, argument = 1) = Evaluation(false, c, argument)

"""
    Scheme(; evaluations, arguments, y1, drift_error, noise_error, sizes = false)

A method by its evaluations in their order, their arguments from the second on, the new state and, if it is adaptive,
the two parts of the error. With `sizes` the parts are |`drift_error`| and |dW|^3/6 times the square of `noise_error`.
"""
Base.@kwdef struct Scheme
    evaluations::Vector{Evaluation}
    arguments::Vector{Combination} = []
    y1::Combination
    drift_error::Combination = Combination()
    noise_error::Combination = Combination()
    sizes::Bool = false
end

"Whether the method estimates its error."
estimates_error(scheme::Scheme) = !isempty(scheme.drift_error.drifts)

"Vectors that a diffusion is multiplied by, by name, of the increments dW and dZ over a step of size h."
const NOISES = (
    increment = (w, z, h, root) -> w,
    root = (w, z, h, root) -> root,
    inverse_root = (w, z, h, root) -> inv(root),
    rooted = (w, z, h, root) -> root * w,
    ito = (w, z, h, root) -> (w^2 - h) / (2 * root),  # the double integral of dW by itself, over the root of h
    stratonovich = (w, z, h, root) -> w^2 / (2 * root),
    mixed = (w, z, h, root) -> w / 2 + z / (2 * sqrt(oftype(z, 3))),  # the integral of W by time, over h
)

# The second evaluation of the drift, at the end of Euler's step.
const EULER = Combination(state = true, drifts = [(1, 1.0)])
drift_change(n) = Combination(drifts = [(n, 0.5), (1, -0.5)])

rkmil(noise) = Scheme(
    evaluations = [drift_at(0), diffusion_at(0), diffusion_at(0, 2), drift_at(1, 3)],
    arguments = [
        Combination(state = true, drifts = noise === :ito ? [(1, 1.0)] : [], diffusions = [(2, :root, 1.0)]), EULER,
    ],
    y1 = Combination(
        state = true, drifts = [(1, 1.0)], diffusions = [(2, :increment, 1.0), (3, noise, 1.0), (2, noise, -1.0)]
    ),
    drift_error = drift_change(4),
    noise_error = Combination(diffusions = [(3, :inverse_root, 1.0), (2, :inverse_root, -1.0)]),
    sizes = true,
)

const EULER_NOISE = Combination(state = true, drifts = [(1, 1.0)], diffusions = [(2, :increment, 1.0)])
const HEUN = Combination(
    state = true, drifts = [(1, 0.5), (3, 0.5)], diffusions = [(2, :increment, 0.5), (4, :increment, 0.5)]
)

# StochasticDiffEq's code fails for a matrix, which it adds to the state. There the diffusion's part of the error is
# (g(y + g dW) - g(y)) dW / 2: for one process and in the limit of small steps it is the same.
lambaeulerheun(moved, noise, weight) = Scheme(
    evaluations = [drift_at(0), diffusion_at(0), drift_at(1, 2), diffusion_at(1, 2), drift_at(1, 3), diffusion_at(0, 4)],
    arguments = [EULER_NOISE, EULER, Combination(state = true, diffusions = [(2, moved, 1.0)])],
    y1 = HEUN,
    drift_error = drift_change(5),
    noise_error = Combination(diffusions = [(6, noise, weight), (2, noise, -weight)]),
)

"""
    Scheme(tableau)

The same for a [`NoiseTableau`](@ref) for noise that does not depend on the state.
"""
function Scheme(tableau::NoiseTableau)
    stages = 1:tableau.stages
    # the drift of stage i is evaluation 2i - 1, its diffusion evaluation 2i
    drift(weights) = [(2i - 1, weights[i]) for i in stages if weights[i] != 0]
    noise(name, weights) = [(2i, name, weights[i]) for i in stages if weights[i] != 0]
    return Scheme(
        evaluations = [e for i in stages for e in (drift_at(tableau.c0[i], i), diffusion_at(tableau.c1[i], i))],
        arguments = [
            Combination(state = true, drifts = drift(tableau.A0[i, :]), diffusions = noise(:mixed, tableau.B0[i, :]))
                for i in stages[2:end]
        ],
        y1 = Combination(
            state = true, drifts = drift(tableau.alpha),
            diffusions = [noise(:increment, tableau.b1); noise(:mixed, tableau.b3)]
        ),
        drift_error = Combination(drifts = drift(tableau.delta .* tableau.e1)),
        noise_error = Combination(diffusions = noise(:mixed, tableau.b3)),
    )
end

"The methods by name."
const SCHEMES = Dict(
    :em => Scheme(evaluations = [drift_at(0), diffusion_at(0)], y1 = EULER_NOISE),
    :rkmil => rkmil(:ito),
    :rkmil_stratonovich => rkmil(:stratonovich),
    # as in the out-of-place code with `split = true`: the diffusion at the state and at the end of the step
    :lambaem => Scheme(
        evaluations = [drift_at(0), diffusion_at(1), drift_at(1, 2), diffusion_at(0, 3)],
        arguments = [EULER, Combination(state = true, drifts = [(1, 1.0)], diffusions = [(2, :rooted, 1.0)])],
        y1 = EULER_NOISE,
        drift_error = drift_change(3),
        noise_error = Combination(diffusions = [(4, :ito, 1.0), (2, :ito, -1.0)]),
    ),
    :lambaeulerheun => lambaeulerheun(:root, :stratonovich, 1.0),
    :lambaeulerheun_matrix => lambaeulerheun(:increment, :increment, 0.5),
    :heun => Scheme(evaluations = [drift_at(0), diffusion_at(0), drift_at(1, 2), diffusion_at(1, 2)], arguments = [EULER_NOISE], y1 = HEUN),
    :diffusionheun => Scheme(
        evaluations = [drift_at(0), diffusion_at(0), diffusion_at(1, 2)],
        arguments = [Combination(state = true, diffusions = [(2, :increment, 1.0)])],
        y1 = Combination(
            state = true, drifts = [(1, 1.0)], diffusions = [(2, :increment, 0.5), (3, :increment, 0.5)]
        ),
    ),
    :sosra_matrix => Scheme(NoiseTableau(:sosra)),
    :midpoint => Scheme(
        evaluations = [drift_at(0), diffusion_at(0), drift_at(0.5, 2), diffusion_at(0.5, 2)],
        arguments = [Combination(state = true, drifts = [(1, 0.5)], diffusions = [(2, :increment, 0.5)])],
        y1 = Combination(state = true, drifts = [(3, 1.0)], diffusions = [(4, :increment, 1.0)]),
    ),
)

"""
    SchemeStep(scheme, y, diffusion)

Buffers of one step from time `t` to `t1 = t + h`: `values` of the evaluations, their residuals and `arguments` (the first
is the state), the increments `dW` and `dZ`, the vectors formed from it, both parts of the error, the new state `y1` and a
scratch array. `columns` and `rows` are the [`Field`](@ref) `diffusion`'s.
"""
mutable struct SchemeStep{V}
    t::Float64
    h::Float64
    t1::Float64
    const columns::Int
    const rows::Int
    const values::Vector{V}
    const residuals::Vector{Any}
    const arguments::Vector{V}
    const dW::V
    const dZ::V
    const noises::Dict{Symbol, V}
    const drift_error::V
    const noise_error::V
    const y1::V
    const scratch::V
end

function SchemeStep(scheme::Scheme, y, diffusion)
    (; columns, rows) = diffusion
    zeros_like(n = length(y)) = fill!(similar(y, n), 0)
    values = [zeros_like(e.of_drift ? length(y) : length(y) * max(columns, 1)) for e in scheme.evaluations]
    arguments = [zeros_like() for _ in 0:length(scheme.arguments)]
    entries = noise_length(diffusion, length(y))
    noises = Dict(name => zeros_like(entries) for name in noises_of(scheme))
    others = ntuple(_ -> zeros_like(), 4)
    return SchemeStep(
        0.0, 0.0, 0.0, columns, rows, values, Vector{Any}(nothing, length(values)), arguments, zeros_like(entries),
        zeros_like(entries), noises, others...
    )
end

"The vectors that a scheme needs."
function noises_of(scheme::Scheme)
    combinations = [scheme.arguments; scheme.y1; scheme.noise_error]
    return unique(noise for combination in combinations for (_, noise, _) in combination.diffusions)
end

"Whether a scheme needs the second increment."
has_second(scheme::Scheme) = :mixed in noises_of(scheme)

"Gives the evaluations arrays for their residuals."
function keep_residuals!(step::SchemeStep, scheme::Scheme, drift, diffusion)
    for (n, e) in enumerate(scheme.evaluations)
        step.residuals[n] = residuals(e.of_drift ? drift : diffusion)
    end
    return step
end

"Adds a combination to `out`, or with its state sets it."
function combine!(out, step::SchemeStep, sum::Combination)
    sum.state ? copyto!(out, step.arguments[1]) : fill!(out, 0)
    T = eltype(out)
    foreach(((n, weight),) -> add!(out, T(step.h * weight), step.values[n]), sum.drifts)
    for (n, noise, weight) in sum.diffusions
        drive!(out, weight, step.values[n], step.noises[noise], step.columns, step.rows)
    end
    return out
end

"Makes the step from `step.arguments[1]` with the increments `step.dW`, `step.dZ`."
function take_scheme_step!(step::SchemeStep, scheme::Scheme, drift, diffusion, t, h, t1)
    step.t, step.h, step.t1 = t, h, t1
    T, (; dW, dZ) = eltype(step.dW), step
    size, root = T(h), T(sqrt(h))
    for (name, vector) in step.noises
        noise = NOISES[name]
        vector .= noise.(dW, dZ, size, root)
    end
    done = 1
    for (n, e) in enumerate(scheme.evaluations)
        while done < e.argument
            done += 1
            combine!(step.arguments[done], step, scheme.arguments[done - 1])
        end
        evaluate!(
            step.values[n], e.of_drift ? drift : diffusion, stage_time(e.c, t, h, t1), step.arguments[e.argument],
            step.residuals[n]
        )
    end
    combine!(step.y1, step, scheme.y1)
    return step
end

"The error over the tolerance, entrywise."
function scheme_error_ratio!(out, step::SchemeStep, scheme::Scheme, rtol, atol)
    (; dW, drift_error, noise_error) = step
    combine!(drift_error, step, scheme.drift_error)
    combine!(noise_error, step, scheme.noise_error)
    if scheme.sizes
        @.. out = abs(drift_error) + abs(dW)^3 * noise_error^2 / 6
    else
        @.. out = drift_error + noise_error
    end
    return divided!(out, step.arguments[1], step.y1, rtol, atol)
end

"Local error estimate E = rms of [`scheme_error_ratio!`](@ref), which is left in `step.scratch`."
scheme_error_estimate!(step::SchemeStep, scheme::Scheme, rtol, atol) =
    rms(scheme_error_ratio!(step.scratch, step, scheme, rtol, atol))

"What the method estimates of the step; NaN where it has no estimate."
function scheme_estimates!(step::SchemeStep, scheme::Scheme, rtol, atol)
    error = estimates_error(scheme) ? scheme_error_estimate!(step, scheme, rtol, atol) : NaN
    return (; error, stiffness = NaN)
end
