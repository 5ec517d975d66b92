# One explicit Runge-Kutta step and its reverse. The Python twin is
# python/regnde/_engines/torch/step.py; formulas: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary
# Differential Equations I, II.4-6; the stiffness quotient: Hairer, Wanner II, IV.2.

"""
    Stages(tableau, y)

The stages of one step: slopes `k`, their arguments `g` (`g[1]` is the state at the start), what the
evaluations kept for their reverse, the new state `y1` (for an FSAL method the last argument itself)
and a scratch array. The interpolant's stages get memory when they are first needed.
"""
mutable struct Stages{V}
    const k::Vector{V}
    const g::Vector{V}
    const kept::Vector{Any}
    y1::V
    const scratch::V
end

function Stages(tableau::Tableau, y::V) where {V}
    s = empty_stages(tableau, y)
    for i in 1:tableau.stages
        s.k[i], s.g[i] = take(V, length(y)), take(V, length(y))
    end
    s.y1 = tableau.fsal ? s.g[tableau.stages] : take(V, length(y))
    return s
end

"Stages of which only the scratch array has memory."
function empty_stages(tableau::Tableau, y::V) where {V}
    many() = Vector{V}(undef, total(tableau))
    scratch = take(V, length(y))
    return Stages(many(), many(), Vector{Any}(nothing, total(tableau)), scratch, scratch)
end

"Lets the evaluations of the step's stages keep what their reverse needs."
function keep_all!(s::Stages, tableau::Tableau, field)
    for i in 1:tableau.stages
        s.kept[i] = memory(field)
    end
    return s
end

"The stages as they are now; `renew!` then gives the next step other arrays."
function snapshot(s::Stages, tableau::Tableau)
    n = tableau.stages
    return Stages(s.k[1:n], s.g[1:n], s.kept[1:n], s.y1, s.scratch)
end

"Arrays for the step after one whose arrays are held elsewhere; an FSAL method's first stage stays."
function renew!(s::Stages{V}, tableau::Tableau, field) where {V}
    n, len = tableau.stages, length(s.scratch)
    if tableau.fsal
        s.k[1], s.g[1], s.kept[1] = s.k[n], s.g[n], s.kept[n]
    end
    for i in (tableau.fsal ? 2 : 1):n
        s.k[i], s.g[i], s.kept[i] = take(V, len), take(V, len), memory(field)
    end
    s.y1 = tableau.fsal ? s.g[n] : take(V, len)
    return s
end

"""
    release!(stages, first = 1)

Gives the memory of stages from `first` on away, the step's end included.
"""
function release!(s::Stages, first = 1)
    any(i -> isassigned(s.g, i) && s.g[i] === s.y1, eachindex(s.g)) || give(s.y1)
    for i in first:length(s.g)
        isassigned(s.g, i) && give(s.g[i])
        i <= length(s.k) && isassigned(s.k, i) && give(s.k[i])
        i <= length(s.kept) && s.kept[i] !== nothing && foreach(give, s.kept[i])
    end
    return nothing
end

"Time of stage `i`; a stage at the step's end gets exactly `t1`."
stage_time(tableau::Tableau, i, t, h, t1) = tableau.c[i] == 1.0 ? t1 : t + tableau.c[i] * h

"""
    take_step!(stages, tableau, field, t, h, t1)

Makes the step from `stages.g[1]` with the first slope `stages.k[1]` given.
"""
function take_step!(s::Stages, tableau::Tableau, field, t, h, t1)
    for i in 2:tableau.stages
        argument!(s, tableau, h, i)
        evaluate!(s.k[i], field, stage_time(tableau, i, t, h, t1), s.g[i], s.kept[i])
    end
    tableau.fsal || shifted!(s.y1, s.g[1], tableau.b, s.k, h, tableau.stages)
    return s
end

argument!(s::Stages, tableau, h, i) = shifted!(s.g[i], s.g[1], view(tableau.a, i, :), s.k, h, i - 1)

"The further slopes that the interpolant needs; with `keep` they will be gone back over."
function extra_stages!(s::Stages{V}, tableau::Tableau, field, t, h, t1; keep = false) where {V}
    for i in (tableau.stages + 1):total(tableau)
        if !isassigned(s.k, i)
            s.k[i], s.g[i] = take(V, length(s.scratch)), take(V, length(s.scratch))
            keep && (s.kept[i] = memory(field))
        end
        argument!(s, tableau, h, i)
        evaluate!(s.k[i], field, stage_time(tableau, i, t, h, t1), s.g[i], s.kept[i])
    end
    return s
end

"Weights of the stages in the state at t + theta h."
dense_weights(tableau::Tableau, theta) = tableau.dense * [theta^p for p in axes(tableau.dense, 2)]

"""
    error_estimate!(stages, tableau, h, rtol, atol) -> E

The embedded error h sum_j btilde_j k_j, left in `stages.scratch`, over the tolerance, RMS over all entries.
"""
function error_estimate!(s::Stages, tableau::Tableau, h, rtol, atol)
    raw = fill!(s.scratch, 0)
    accumulate!(raw, tableau.btilde, s.k, h, tableau.stages)
    return scaled_rms(raw, s.g[1], s.y1, rtol, atol)
end

function scaled_rms(raw, y, y1, rtol, atol)
    isempty(raw) && return 0.0
    T = eltype(raw)
    rt, at = T(rtol), T(atol)
    total = mapreduce((e, a, b) -> abs2(e / (at + rt * max(abs(a), abs(b)))), +, raw, y, y1)
    return sqrt(wide(total) / length(raw))
end

function scaled_rms(raw::Vector{T}, y::Vector{T}, y1::Vector{T}, rtol, atol) where {T}
    isempty(raw) && return 0.0
    rt, at, total = T(rtol), T(atol), zero(T)
    @inbounds @simd for i in eachindex(raw, y, y1)
        total += abs2(raw[i] / (at + rt * max(abs(y[i]), abs(y1[i]))))
    end
    return sqrt(wide(total) / length(raw))
end

"""
    quotient(k2, k1, g2, g1)

Stiffness estimate rms(k2 - k1) / rms(g2 - g1) of two slopes at one time; 0 where the denominator is 0.
"""
function quotient(k2, k1, g2, g1)
    below = rms_difference(g2, g1)
    return below == 0 ? 0.0 : rms_difference(k2, k1) / below
end

function stiffness_estimate(s::Stages, tableau::Tableau)
    n = tableau.stages
    return quotient(s.k[n], s.k[n - 1], s.g[n], s.g[n - 1])
end

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
    v::V
    k_live::Vector{Bool}
    g_live::Vector{Bool}
    carry_live::Base.RefValue{Bool}
    ones::Vector{Float64}
end

function Reverse(count::Int, y::V) where {V}
    buffer(_ = 0) = take(V, length(y))
    return Reverse(
        map(buffer, 1:count), map(buffer, 1:count), buffer(), fill!(buffer(), 0), buffer(), buffer(),
        buffer(), fill(false, count), fill(false, count), Ref(false), ones(count)
    )
end

Reverse(tableau::Tableau, y, inside = true) = Reverse(inside ? total(tableau) : tableau.stages, y)

function release!(rev::Reverse)
    foreach(give, rev.kbar)
    foreach(give, rev.gbar)
    foreach(give, (rev.ybar, rev.lam, rev.carry, rev.x, rev.v))
    return nothing
end

"""
    reverse_step!(rev, stages, tableau, field, t, h, t1, rtol, atol; Ebar, Sbar, outputs, freeze)

Reverse of one step. On entry `rev.lam` is the cotangent of the new state and `rev.carry` of the last
slope as the next step's first; on return they are those of the step's initial state and first slope.
The field's parameter cotangents are added to. `outputs` are pairs (weights, cotangent) of states
inside the step. A `freeze`d first stage is a constant.
"""
function reverse_step!(
        rev::Reverse, s::Stages, tableau::Tableau, field, t, h, t1, rtol, atol;
        Ebar = 0.0, Sbar = 0.0, outputs = (), freeze = false
    )
    n = tableau.stages
    m = isempty(outputs) ? n : total(tableau)
    start_reverse!(rev, m)
    (; kbar, gbar, ybar, k_live, g_live) = rev
    T = eltype(ybar)
    Ebar == 0 || error_pullback!(rev, s, tableau, h, rtol, atol, Ebar)
    Sbar == 0 || quotient_pullback!(rev, s.k, s.g, n, Sbar)
    for (weights, v) in outputs
        ybar .+= v
        for j in 1:m
            weights[j] == 0 || add!(touch!(kbar, k_live, j), T(h * weights[j]), v)
        end
    end
    if tableau.fsal
        add!(touch!(gbar, g_live, n), one(T), rev.lam)
        rev.carry_live[] && add!(touch!(kbar, k_live, n), one(T), rev.carry)
    else
        add!(ybar, one(T), rev.lam)
        for j in 1:n
            tableau.b[j] == 0 || add!(touch!(kbar, k_live, j), T(h * tableau.b[j]), rev.lam)
        end
    end
    for i in m:-1:2
        gather!(rev, tableau.a, h, i, m)
        time = stage_time(tableau, i, t, h, t1)
        if k_live[i] && g_live[i]
            add!(gbar[i], one(T), vjp!(rev.x, field, kbar[i], time, s.g[i], s.kept[i]))
        elseif k_live[i]
            vjp!(gbar[i], field, kbar[i], time, s.g[i], s.kept[i])
            g_live[i] = true
        else
            touch!(gbar, g_live, i)
        end
    end
    accumulate!(ybar, view(rev.ones, 1:(m - 1)), view(gbar, 2:m), 1.0)
    gather!(rev, tableau.a, h, 1, m)
    if freeze
        rev.carry_live[] = false
    elseif tableau.fsal
        copyto!(rev.carry, kbar[1])
        rev.carry_live[] = k_live[1]
    elseif k_live[1]
        vjp!(rev.x, field, kbar[1], t, s.g[1], s.kept[1])
        add!(ybar, one(T), rev.x)
    end
    copyto!(rev.lam, ybar)
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

"Adds what the later stages' arguments pass on to slope `i`."
function gather!(rev::Reverse, a, h, i, count)
    for l in (i + 1):count
        if a[l, i] != 0
            accumulate!(touch!(rev.kbar, rev.k_live, i), view(a, :, i), rev.gbar, h, count)
            break
        end
    end
    return rev
end

function error_pullback!(rev::Reverse, s::Stages, tableau, h, rtol, atol, Ebar)
    E = error_estimate!(s, tableau, h, rtol, atol)
    E == 0 && return rev
    T = eltype(rev.x)
    scale = Ebar / (length(rev.x) * E)
    scaled_pullback!(rev.x, rev.ybar, rev.lam, s.scratch, s.g[1], s.y1, rtol, atol, scale)
    for j in 1:tableau.stages
        tableau.btilde[j] == 0 && continue
        add!(touch!(rev.kbar, rev.k_live, j), T(h * tableau.btilde[j]), rev.x)
    end
    return rev
end

"Adds the cotangents of the stiffness quotient of slopes `n` and `n - 1` at `g[n]` and `g[n - 1]`."
function quotient_pullback!(rev::Reverse, k, g, n, Sbar)
    above, below = rms_difference(k[n], k[n - 1]), rms_difference(g[n], g[n - 1])
    (below == 0 || above == 0) && return rev
    T, N = eltype(rev.x), length(rev.x)
    a = T(Sbar / (N * above * below))
    b = T(-Sbar * above / (N * below^3))
    @. rev.x = a * (k[n] - k[n - 1])
    add!(touch!(rev.kbar, rev.k_live, n), one(T), rev.x)
    add!(touch!(rev.kbar, rev.k_live, n - 1), -one(T), rev.x)
    @. rev.x = b * (g[n] - g[n - 1])
    add!(touch!(rev.gbar, rev.g_live, n), one(T), rev.x)
    add!(touch!(rev.gbar, rev.g_live, n - 1), -one(T), rev.x)
    return rev
end
