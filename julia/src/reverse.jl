# The reverse of one explicit Runge-Kutta step.

"""
    Reverse(tableau, y)

Cotangents of one step and what passes between steps: `lam`, of the state, and `carry`, of an FSAL
method's last slope, which is the next step's first.
"""
struct Reverse{V}
    kbar::Vector{V}
    gbar::Vector{V}
    ybar::V
    lam::V
    carry::V
    x::V
    k_live::Vector{Bool}
    g_live::Vector{Bool}
    carry_live::Base.RefValue{Bool}
end

function Reverse(count::Int, y::V) where {V}
    buffer(_ = 0) = acquire!(V, length(y))
    return Reverse(
        map(buffer, 1:count), map(buffer, 1:count), buffer(), fill!(buffer(), 0), buffer(), buffer(),
        fill(false, count), fill(false, count), Ref(false)
    )
end

Reverse(tableau::Union{Tableau, RosenbrockTableau}, y, inside = true) =
    Reverse(inside ? total(tableau) : tableau.stages, y)

function release!(rev::Reverse)
    foreach(release!, rev.kbar)
    foreach(release!, rev.gbar)
    foreach(release!, (rev.ybar, rev.lam, rev.carry, rev.x))
    return nothing
end

"""
    reverse_step!(rev, step, tableau, field, rtol, atol; Ebar, Sbar, outputs, pieces, freeze)

Reverse of one step. On entry `rev.lam` is the cotangent of the new state and `rev.carry` of the last
slope as the next step's first; on return they are those of the step's initial state and first slope.
The field's parameter cotangents are added to. `outputs` are pairs (weights, cotangent) of states
inside the step, `pieces` cotangents of the state at the start and of all slopes, as columns. A `freeze`d first
stage is a constant.
"""
function reverse_step!(
        rev::Reverse, step::Step, tableau::Tableau, field, rtol, atol;
        Ebar = 0.0, Sbar = 0.0, outputs = (), pieces = (), freeze = false
    )
    n = tableau.stages
    m = isempty(outputs) && isempty(pieces) ? n : total(tableau)
    start_reverse!(rev, m)
    isempty(pieces) || add_pieces!(rev, pieces, m, 1)
    (; kbar, gbar, ybar, k_live, g_live) = rev
    T, h = realtype(ybar), step.h
    Ebar == 0 || error_pullback!(rev, step, tableau, rtol, atol, Ebar)
    Sbar == 0 || quotient_pullback!(rev, step.k, step.arguments, n, Sbar)
    for (weights, v) in outputs
        add!(ybar, one(T), v)
        spread!(rev, weights, h, v, m)
    end
    if tableau.fsal
        add!(touch!(gbar, g_live, n), one(T), rev.lam)
        rev.carry_live[] && add!(touch!(kbar, k_live, n), one(T), rev.carry)
    else
        add!(ybar, one(T), rev.lam)
        spread!(rev, tableau.b, h, rev.lam, n)
    end
    for i in m:-1:2
        gather!(rev, tableau.a, gbar, h, i, m)
        if k_live[i]
            out = g_live[i] ? rev.x : gbar[i]
            time = stage_time(tableau.c[i], step.t, h, step.t1)
            vjp!(out, field, kbar[i], time, step.arguments[i], step.residuals[i])
            g_live[i] ? add!(gbar[i], one(T), out) : (g_live[i] = true)
        else
            touch!(gbar, g_live, i)
        end
    end
    for i in 2:m
        add!(ybar, one(T), gbar[i])
    end
    gather!(rev, tableau.a, gbar, h, 1, m)
    copyto!(rev.carry, kbar[1])
    rev.carry_live[] = k_live[1] && !freeze
    copyto!(rev.lam, ybar)
    tableau.fsal || reverse_first_stage!(rev, field, step)
    return rev
end

"Adds the cotangents of the state at the start and of the first `m` slopes, `factor` times `k`."
function add_pieces!(rev::Reverse, pieces, m, factor)
    (; kbar, ybar, x, k_live) = rev
    T = realtype(x)
    for i in 0:m
        copyto!(x, view(pieces, :, i + 1))
        i == 0 ? add!(ybar, one(T), x) : add!(touch!(kbar, k_live, i), T(factor), x)
    end
    return rev
end

"Takes the cotangent of the first slope back to the state."
function reverse_first_stage!(rev::Reverse, field, step::Step)
    rev.carry_live[] || return rev
    vjp!(rev.x, field, rev.carry, step.t, step.arguments[1], step.residuals[1])
    add!(rev.lam, one(realtype(rev.lam)), rev.x)
    rev.carry_live[] = false
    return rev
end

"Forgets the last step: buffers are cleared when they are first touched."
function start_reverse!(rev::Reverse, count)
    fill!(rev.ybar, 0)
    rev.k_live[1:count] .= false
    rev.g_live[1:count] .= false
    return rev
end

"The buffer, cleared unless something has been added to it in this step."
function touch!(buffers, live, i)
    live[i] || fill!(buffers[i], 0)
    live[i] = true
    return buffers[i]
end

"Adds `h * weights[j] * v` to the cotangent of each slope."
function spread!(rev::Reverse, weights, h, v, count)
    for j in 1:count
        weights[j] == 0 || add!(touch!(rev.kbar, rev.k_live, j), realtype(v)(h * weights[j]), v)
    end
    return rev
end

"Adds what the later stages' arguments, or equations, with cotangents `bars` pass on to slope `i`."
function gather!(rev::Reverse, a, bars, h, i, count)
    any(l -> a[l, i] != 0, (i + 1):count) || return rev
    accumulate!(touch!(rev.kbar, rev.k_live, i), view(a, :, i), bars, h, count)
    return rev
end

function error_pullback!(rev::Reverse, step, tableau, rtol, atol, Ebar)
    E = error_estimate!(step, tableau, rtol, atol)
    E == 0 && return rev
    scale = Ebar / (length(rev.x) * E)
    ratio_pullback!(rev.x, rev.ybar, rev.lam, step.scratch, step.arguments[1], step.y1, rtol, atol, scale)
    spread!(rev, tableau.btilde, scale_of(step), rev.x, tableau.stages)
    return rev
end

"""
    ratio_pullback!(errorbar, ybar, y1bar, ratio, y, y1, rtol, atol, scale)

Reverse of [`divided!`](@ref), `ratio = error / tolerance(larger(y, y1), rtol, atol)`, for the cotangent
`scale * ratio`: sets `errorbar`, adds to `ybar` and `y1bar` through the larger of the two, y1 if they
are equal.
"""
function ratio_pullback!(errorbar, ybar, y1bar, ratio, y, y1, rtol, atol, scale)
    T = realtype(ratio)
    rt, at, s = converted(T, rtol), converted(T, atol), T(scale)
    @.. errorbar = s * ratio / tolerance(larger(y, y1), rt, at)
    @.. y1bar -= (abs(y1) >= abs(y)) * (rt * sign(y1) * real(conj(errorbar) * ratio))
    @.. ybar -= (abs(y1) < abs(y)) * (rt * sign(y) * real(conj(errorbar) * ratio))
    return errorbar
end

"Adds the cotangents of the stiffness quotient of slopes `n` and `n - 1` at `g[n]` and `g[n - 1]`."
function quotient_pullback!(rev::Reverse, k, g, n, Sbar)
    above, below = rms(difference(k[n], k[n - 1])), rms(difference(g[n], g[n - 1]))
    (below == 0 || above == 0) && return rev
    N = length(rev.x)
    norm_pullback!(rev, rev.kbar, rev.k_live, k, n, above, Sbar / (N * below))
    norm_pullback!(rev, rev.gbar, rev.g_live, g, n, below, -Sbar * (above / below) / (N * below))
    return rev
end

"Adds `scale * (x[n] - x[n - 1]) / norm` to the cotangent of `x[n]`, and subtracts it from that of `x[n - 1]`."
function norm_pullback!(rev::Reverse, bars, live, x, n, norm, scale)
    T = realtype(rev.x)
    out, last, previous, size, factor = rev.x, x[n], x[n - 1], T(norm), T(scale)
    @.. out = factor * ((last - previous) / size)
    add!(touch!(bars, live, n), one(T), out)
    add!(touch!(bars, live, n - 1), -one(T), out)
    return rev
end
