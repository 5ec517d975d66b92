# The reverse of one step of a method that is given by its evaluations.

"""
    SchemeReverse(step)

Cotangents of one step: `values` of its evaluations, `ybar` of its state; `lam` passes from step to step.
"""
struct SchemeReverse{V}
    values::Vector{V}
    ybar::V
    lam::V
    x::V
    z::V
end

function SchemeReverse(step::SchemeStep)
    zeros_like(x) = fill!(similar(x), 0)
    return SchemeReverse(map(zeros_like, step.values), ntuple(_ -> zeros_like(step.y1), 4)...)
end

"""
    reverse_step!(rev, step, scheme, drift, diffusion, rtol, atol; Ebar, Sbar, outputs)

Reverse of one step, the increment constant; `rev.lam` and `outputs` as for the other stochastic methods. `Sbar` is 0.
"""
function reverse_step!(
        rev::SchemeReverse, step::SchemeStep, scheme::Scheme, drift, diffusion, rtol, atol;
        Ebar = 0.0, Sbar = 0.0, outputs = ()
    )
    (; ybar, lam, x, z) = rev
    T = eltype(ybar)
    foreach(bar -> fill!(bar, 0), rev.values)
    fill!(ybar, 0)
    for (theta, v) in outputs
        add!(ybar, T(1 - theta), v)
        add!(lam, T(theta), v)
    end
    E = Ebar == 0 ? 0.0 : scheme_error_estimate!(step, scheme, rtol, atol)
    E == 0 || reverse_error!(rev, step, scheme, rtol, atol, Ebar / (length(x) * E))
    combine_pullback!(rev, step, scheme.y1, lam)
    for n in length(scheme.evaluations):-1:1
        e = scheme.evaluations[n]
        vjp!(
            z, e.of_drift ? drift : diffusion, rev.values[n], stage_time(e.c, step.t, step.h, step.t1),
            step.arguments[e.argument], step.residuals[n]
        )
        e.argument == 1 ? add!(ybar, one(T), z) : combine_pullback!(rev, step, scheme.arguments[e.argument - 1], z)
    end
    copyto!(lam, ybar)
    return rev
end

"Adds the cotangents of the error over the tolerance, `scale * ratio`, the ratio in `step.scratch`."
function reverse_error!(rev::SchemeReverse, step::SchemeStep, scheme::Scheme, rtol, atol, scale)
    (; ybar, lam, x, z) = rev
    (; dW, drift_error, noise_error) = step
    ratio_pullback!(x, ybar, lam, step.scratch, step.arguments[1], step.y1, rtol, atol, scale)
    if scheme.sizes
        @.. z = x * sign(drift_error)
        combine_pullback!(rev, step, scheme.drift_error, z)
        @.. x = x * abs(dW)^3 * noise_error / 3
    else
        combine_pullback!(rev, step, scheme.drift_error, x)
    end
    combine_pullback!(rev, step, scheme.noise_error, x)
    return nothing
end

"Reverse of [`combine!`](@ref) for the cotangent `v` of its result."
function combine_pullback!(rev::SchemeReverse, step::SchemeStep, sum::Combination, v)
    T = eltype(v)
    sum.state && add!(rev.ybar, one(T), v)
    foreach(((n, weight),) -> add!(rev.values[n], T(step.h * weight), v), sum.drifts)
    for (n, noise, weight) in sum.diffusions
        drive_pullback!(rev.values[n], weight, v, step.noises[noise], step.columns, step.rows)
    end
    return nothing
end

state_cotangent(rev::SchemeReverse) = rev.lam
