# The reverse of one step of a stochastic Runge-Kutta method.

"""
    SDEReverse(tableau, y)

Cotangents of one stochastic step. `base` holds those of the drifts and of their arguments, `gbar`
those of the diffusions; `base.lam` passes from step to step.
"""
struct SDEReverse{V}
    base::Reverse{V}
    gbar::Vector{V}
    x1::V
end

function SDEReverse(tableau::NoiseTableau, y)
    gbar = [fill!(similar(y), 0) for _ in 1:tableau.stages]
    return SDEReverse(Reverse(tableau.stages, y), gbar, fill!(similar(y), 0))
end

"""
    reverse_step!(rev, step, tableau, drift, diffusion, rtol, atol; Ebar, Sbar, outputs)

Reverse of one stochastic step, the increments constant; `rev.base.lam` as for an ODE. `outputs` are
pairs (theta, cotangent) of states on the straight line through the step.
"""
function reverse_step!(
        rev::SDEReverse, step::SDEStep, tableau::NoiseTableau, drift, diffusion, rtol, atol;
        Ebar = 0.0, Sbar = 0.0, outputs = ()
    )
    (; base, gbar, x1) = rev
    (; kbar, ybar, lam, x) = base
    (; t, h, t1, H0, H1, dW, double, mixed, triple) = step
    T, root, n = eltype(ybar), sqrt(h), tableau.stages
    start_reverse!(base, n)
    for i in 1:n
        touch!(kbar, base.k_live, i)
        touch!(base.gbar, base.g_live, i)
    end
    for (theta, v) in outputs
        add!(ybar, T(1 - theta), v)
        add!(lam, T(theta), v)
    end
    Sbar == 0 || quotient_pullback!(base, step.k, H0, tableau.drifts, Sbar)
    fill!(x, 0)  # from here on the cotangent of the error
    E = Ebar == 0 ? 0.0 : sde_error_estimate!(step, tableau, rtol, atol)
    if E != 0
        ratio_pullback!(x, ybar, lam, step.scratch, H0[1], step.y1, rtol, atol, Ebar / (length(x) * E))
        spread!(base, tableau.e1, h * tableau.delta, x, length(tableau.e1))
    end
    for i in 1:n
        add!(kbar[i], T(h * tableau.alpha[i]), lam)
        gibar, w1, w2, w3, w4 = gbar[i], T(tableau.b1[i]), T(tableau.b2[i]), T(tableau.b3[i]), T(tableau.b4[i])
        @.. gibar = (dW * w1 + double * w2) * lam + (mixed * w3 + triple * w4) * (lam + x)
    end
    add!(ybar, one(T), lam)
    for i in n:-1:1
        H0bar = base.gbar[i]  # holds the stiffness quotient's share already
        vjp!(x1, diffusion, gbar[i], stage_time(tableau.c1[i], t, h, t1), H1[i], step.g_residuals[i])
        add!(tableau.shared ? H0bar : ybar, one(T), x1)
        if i <= tableau.drifts
            vjp!(x, drift, kbar[i], stage_time(tableau.c0[i], t, h, t1), H0[i], step.k_residuals[i])
            add!(H0bar, one(T), x)
        end
        add!(ybar, one(T), H0bar)
        for j in 1:(i - 1)
            a0, a1, b0, b1 = tableau.A0[i, j], tableau.A1[i, j], T(tableau.B0[i, j]), tableau.B1[i, j]
            a0 == 0 || add!(kbar[j], T(h * a0), H0bar)
            a1 == 0 || add!(kbar[j], T(h * a1), x1)
            gjbar = gbar[j]
            b0 == 0 || (@.. gjbar += mixed * b0 * H0bar)
            b1 == 0 || add!(gbar[j], T(root * b1), x1)
        end
    end
    copyto!(lam, ybar)
    return rev
end

"The cotangent of the state that passes from step to step."
state_cotangent(rev::SDEReverse) = rev.base.lam
