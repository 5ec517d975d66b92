# The reverse of one step of a Rosenbrock method: one solve with the transposed factors for each stage. The Jacobian's own
# derivative needs no Jacobian: its cotangent is a sum of products of a cotangent and a stage, and for each of them the
# reverse of the field's Jacobian-vector product gives the gradient.

"""
As for explicit methods, without anything that passes between steps. A `freeze`d first stage is none of a Rosenbrock
method, whose slope at the start comes with the Jacobian.
"""
function reverse_step!(
        rev::Reverse, step::RosenbrockStep, tableau::RosenbrockTableau, field, rtol, atol;
        Ebar = 0.0, Sbar = 0.0, outputs = (), pieces = (), freeze = false
    )
    (; t, h, t1, k, arguments, scratch, mass) = step
    n, y, (; gamma) = tableau.stages, arguments[1], tableau
    start_reverse!(rev, n)
    isempty(pieces) || add_pieces!(rev, pieces, n, inv(h))
    (; kbar, gbar, ybar, lam, x, k_live, g_live) = rev
    T, by_timebar = eltype(ybar), fill!(rev.carry, 0)
    scaled = T(h * gamma)
    Ebar == 0 || error_pullback!(rev, step, tableau, rtol, atol, Ebar)
    for (weights, v) in outputs
        add!(ybar, one(T), v)
        spread!(rev, weights, 1, v, n)
    end
    add!(ybar, one(T), lam)
    spread!(rev, tableau.b, 1, lam, n)
    for i in n:-1:1
        gather!(rev, tableau.a, gbar, 1, i, n)
        any(l -> tableau.coupling[l, i] != 0, (i + 1):n) && add_coupled!(
            touch!(kbar, k_live, i), mass, view(tableau.coupling, :, i), kbar, gamma, n, x; transposed = true
        )
        live = k_live[i]
        touch!(kbar, k_live, i)
        touch!(gbar, g_live, i)
        live || continue
        ldiv!(step.factors', kbar[i])  # of the right side of the stage's equations
        add!(fill!(x, 0), scaled, kbar[i])
        vjp!(gbar[i], field, x, stage_time(tableau.c[i], t, h, t1), arguments[i])
        add!(ybar, one(T), gbar[i])
        add!(ybar, one(T), jvp_vjp!(scratch, field, x, 0, k[i], t, y))
        add!(by_timebar, T(h^2 * gamma * tableau.d[i]), kbar[i])
    end
    all(iszero, by_timebar) || add!(ybar, one(T), jvp_vjp!(scratch, field, by_timebar, 1, fill!(x, 0), t, y))
    Sbar == 0 || norm_pullback!(rev, step, field, Sbar)
    copyto!(lam, ybar)
    rev.carry_live[] = false
    return rev
end

"Adds the cotangent of the state through the largest sum of a row of |M^-1 J|; equal ones share it, as in PyTorch."
function norm_pullback!(rev::Reverse, step::RosenbrockStep, field, Sbar)
    (; t, arguments, scratch, mass) = step
    (; ybar, x, carry) = rev
    matrix = solved(mass, step.jacobian)
    T, sums = eltype(ybar), vec(sum(abs, matrix; dims = 2))
    rows = findall(==(maximum(sums)), sums)
    for row in rows
        fill!(carry, 0)[row] = Sbar / length(rows)
        mass isa Mass && ldiv!(mass.factors', carry)
        x .= sign.(view(matrix, row, :))
        add!(ybar, one(T), jvp_vjp!(scratch, field, carry, 0, x, t, arguments[1]))
    end
    return rev
end

reverse_first_stage!(rev::Reverse, _, ::RosenbrockStep) = rev
