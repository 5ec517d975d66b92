# One step of a stochastic Runge-Kutta method with diagonal noise, and its reverse.

"""
    NoiseStages(tableau, y)

Buffers of one step: drifts `k` at `H0`, diffusions `g` at `H1`, what their evaluations kept for their
reverse, the increments `dW`, `dZ` of the two Brownian motions and the random numbers chi1, chi2, chi3
formed from them. `H0[1]` is the state.
"""
struct NoiseStages{V}
    k::Vector{V}
    g::Vector{V}
    k_kept::Vector{Any}
    g_kept::Vector{Any}
    H0::Vector{V}
    H1::Vector{V}
    y1::V
    dW::V
    dZ::V
    chi1::V
    chi2::V
    chi3::V
    E2::V
    raw::V
    mixed::V
end

function NoiseStages(tableau::NoiseTableau, y)
    many() = [fill!(similar(y), 0) for _ in 1:tableau.stages]
    k, g, H0 = many(), many(), many()
    H1 = tableau.shared ? H0 : [H0[1], (similar(y) for _ in 2:tableau.stages)...]
    none() = Vector{Any}(nothing, tableau.stages)
    return NoiseStages(k, g, none(), none(), H0, H1, ntuple(_ -> fill!(similar(y), 0), 9)...)
end

"Lets the evaluations keep what their reverse needs."
function keep_all!(s::NoiseStages, tableau::NoiseTableau, drift, diffusion)
    for i in 1:tableau.stages
        i <= tableau.drifts && (s.k_kept[i] = memory(drift))
        s.g_kept[i] = memory(diffusion)
    end
    return s
end

"The iterated integrals of one step: I_(1,1)/sqrt(h), I_(1,0)/h, I_(1,1,1)/h."
function integrals!(s::NoiseStages, h)
    T = eltype(s.dW)
    step, root, third = T(h), T(sqrt(abs(h))), T(1 / sqrt(3))
    @. s.chi1 = (s.dW^2 - step) / (2 * root)
    @. s.chi2 = (s.dW + s.dZ * third) / 2
    @. s.chi3 = (s.dW^3 - 3 * s.dW * step) / (6 * step)
    return s
end

"""
    take_step!(stages, tableau, drift, diffusion, t, h)

Makes the step from `stages.H0[1]` with the increments `stages.dW`, `stages.dZ`.
"""
function take_step!(s::NoiseStages, tableau::NoiseTableau, drift, diffusion, t, h)
    integrals!(s, h)
    y, root = s.H0[1], sqrt(abs(h))
    for i in 1:tableau.stages
        if i > 1 && (i <= tableau.drifts || tableau.shared)
            shifted!(s.H0[i], y, view(tableau.A0, i, :), s.k, h, i - 1)
            add_noise!(s.H0[i], s, s.chi2, view(tableau.B0, i, :), i - 1)
        end
        if i > 1 && !tableau.shared
            shifted!(s.H1[i], y, view(tableau.A1, i, :), s.k, h, i - 1)
            accumulate!(s.H1[i], view(tableau.B1, i, :), s.g, root, i - 1)
        end
        i <= tableau.drifts && evaluate!(s.k[i], drift, t + tableau.c0[i] * h, s.H0[i], s.k_kept[i])
        evaluate!(s.g[i], diffusion, t + tableau.c1[i] * h, s.H1[i], s.g_kept[i])
    end
    fill!(s.E2, 0)
    add_noise!(s.E2, s, s.chi2, tableau.b3, tableau.stages)
    add_noise!(s.E2, s, s.chi3, tableau.b4, tableau.stages)
    shifted!(s.y1, y, tableau.alpha, s.k, h)
    s.y1 .+= s.E2
    add_noise!(s.y1, s, s.dW, tableau.b1, tableau.stages)
    add_noise!(s.y1, s, s.chi1, tableau.b2, tableau.stages)
    return s
end

"Adds `chi .* sum(weights[j] * g[j])` over the first `count` diffusions."
function add_noise!(out, s::NoiseStages, chi, weights, count)
    next_term(weights, 1, count) > count && return out
    accumulate!(fill!(s.mixed, 0), weights, s.g, 1.0, count)
    @. out += chi * s.mixed
    return out
end

"The embedded error delta E1 + E2, left in `stages.raw`, over the tolerance, RMS over all entries."
function error_estimate!(s::NoiseStages, tableau::NoiseTableau, h, rtol, atol)
    copyto!(s.raw, s.E2)
    accumulate!(s.raw, tableau.e1, s.k, tableau.delta * h)
    return scaled_rms(s.raw, s.H0[1], s.y1, rtol, atol)
end

function stiffness_estimate(s::NoiseStages, tableau::NoiseTableau)
    n = tableau.drifts
    return quotient(s.k[n], s.k[n - 1], s.H0[n], s.H0[n - 1])
end

"""
    NoiseReverse(tableau, y)

Cotangents of one stochastic step. `base` holds those of the drifts and of their arguments, `gbar`
those of the diffusions; `base.lam` passes from step to step.
"""
struct NoiseReverse{V}
    base::Reverse{V}
    gbar::Vector{V}
    x1::V
end

function NoiseReverse(tableau::NoiseTableau, y)
    gbar = [fill!(similar(y), 0) for _ in 1:tableau.stages]
    return NoiseReverse(Reverse(tableau.stages, y), gbar, fill!(similar(y), 0))
end

"""
    reverse_step!(rev, stages, tableau, drift, diffusion, t, h, rtol, atol; Ebar, Sbar, outputs)

Reverse of one stochastic step, the increments constant; `rev.base.lam` as for an ODE. `outputs` are
pairs (theta, cotangent) of states on the straight line through the step.
"""
function reverse_step!(
        rev::NoiseReverse, s::NoiseStages, tableau::NoiseTableau, drift, diffusion, t, h, rtol, atol;
        Ebar = 0.0, Sbar = 0.0, outputs = ()
    )
    base, gbar = rev.base, rev.gbar
    (; kbar, ybar, lam, x) = base
    T, root, n = eltype(ybar), sqrt(abs(h)), tableau.stages
    start_reverse!(base, n)
    for i in 1:n
        touch!(kbar, base.k_live, i)
        touch!(base.gbar, base.g_live, i)
    end
    foreach(g -> fill!(g, 0), gbar)
    for (theta, v) in outputs
        add!(ybar, T(1 - theta), v)
        add!(lam, T(theta), v)
    end
    Sbar == 0 || quotient_pullback!(base, s.k, s.H0, tableau.drifts, Sbar)
    fill!(x, 0)  # from here on the cotangent of the raw error
    if Ebar != 0
        E = error_estimate!(s, tableau, h, rtol, atol)
        if E != 0
            scaled_pullback!(x, ybar, lam, s.raw, s.H0[1], s.y1, rtol, atol, Ebar / (length(x) * E))
            for i in eachindex(tableau.e1)
                tableau.e1[i] == 0 || add!(kbar[i], T(h * tableau.delta * tableau.e1[i]), x)
            end
        end
    end
    for i in 1:n
        add!(kbar[i], T(h * tableau.alpha[i]), lam)
        w1, w2, w3, w4 = T(tableau.b1[i]), T(tableau.b2[i]), T(tableau.b3[i]), T(tableau.b4[i])
        @. gbar[i] = (s.dW * w1 + s.chi1 * w2) * lam + (s.chi2 * w3 + s.chi3 * w4) * (lam + x)
    end
    add!(ybar, one(T), lam)
    for i in n:-1:1
        vjp!(rev.x1, diffusion, gbar[i], t + tableau.c1[i] * h, s.H1[i], s.g_kept[i])
        H0bar = base.gbar[i]  # holds the stiffness quotient's share already
        if i <= tableau.drifts
            vjp!(x, drift, kbar[i], t + tableau.c0[i] * h, s.H0[i], s.k_kept[i])
            add!(H0bar, one(T), x)
        end
        tableau.shared && add!(H0bar, one(T), rev.x1)
        add!(ybar, one(T), H0bar)
        tableau.shared || add!(ybar, one(T), rev.x1)
        for j in 1:(i - 1)
            a0, a1 = tableau.A0[i, j], tableau.A1[i, j]
            b0, b1 = T(tableau.B0[i, j]), tableau.B1[i, j]
            a0 == 0 || add!(kbar[j], T(h * a0), H0bar)
            a1 == 0 || add!(kbar[j], T(h * a1), rev.x1)
            b0 == 0 || (@. gbar[j] += s.chi2 * b0 * H0bar)
            b1 == 0 || add!(gbar[j], T(root * b1), rev.x1)
        end
    end
    copyto!(lam, ybar)
    return rev
end
