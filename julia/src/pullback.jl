# The reverse sweep over the accepted steps: the exact gradient of the discrete solution, with times and
# step sizes constant. Nothing is allocated inside the loop.

"""
    Cotangents(recording, ys, error, stiffness)

Cotangents of a recording: of the saved states and of the two records, each possibly `nothing`.
"""
struct Cotangents{Y}
    ys::Union{Nothing, Y}
    error::Union{Nothing, Vector{Float64}}
    stiffness::Union{Nothing, Vector{Float64}}

    Cotangents{Y}(ys, error, stiffness) where {Y} = new{Y}(ys, error, stiffness)
end

function Cotangents(rec::Recording{V, M, O}, ys, error, stiffness) where {V, M, O}
    flat = ys === nothing ? nothing : reshape(ys, length(rec.y0), :)
    return Cotangents{O}(flat, error, stiffness)
end

entry(list::Nothing, n) = 0.0
entry(list, n) = Float64(list[n])

"""
    reverse!(y0bar, recording, field..., cotangents) -> y0bar

Writes the cotangent of the initial state; those of the parameters are added to the arrays that the
fields were made with.
"""
function reverse!(y0bar, rec::Recording, args...)
    y0bar .= 0
    if accepted(rec) == 0
        return add_outputs!(y0bar, rec, args[end], 0, length(rec.outputs), y0bar)
    end
    length(rec.tape) == accepted(rec) || throw(
        ArgumentError("the solve kept nothing to go back over: solve again with `keep = :stages` or `:states`")
    )
    return sweep!(y0bar, rec, args...)
end

function sweep!(
        y0bar::V, rec::Recording{V, <:RungeKutta}, field::Field, cotangents::Cotangents
    ) where {V}
    tableau, (; rtol, atol) = rec.method.tableau, rec.settings
    again = rec.settings.keep === :states
    stages = again ? keep_all!(Stages(tableau, rec.y0), tableau, field) : empty_stages(tableau, rec.y0)
    rev = Reverse(tableau, rec.y0, any(output -> output.step > 0 && output.theta != 1, rec.outputs))
    last = length(rec.outputs)
    for n in accepted(rec):-1:1
        stop_if_asked()
        h, t1 = rec.dt[n], rec.t[n]
        t = n == 1 ? rec.times[1] : rec.t[n - 1]
        recall!(stages, rec, tableau, field, n, t, h, t1)
        first = first_output(rec, n, last)
        inside = interior(rec, cotangents, tableau, first, last, rec.y0)
        isempty(inside) || extra_stages!(stages, tableau, field, t, h, t1; keep = true)
        add_outputs!(rev.lam, rec, cotangents, first, last, rev.v)
        reverse_step!(
            rev, stages, tableau, field, t, h, t1, rtol, atol;
            Ebar = entry(cotangents.error, n), Sbar = entry(cotangents.stiffness, n), outputs = inside
        )
        last = first - 1
    end
    if rev.carry_live[]
        vjp!(rev.x, field, rev.carry, rec.times[1], stages.g[1], stages.kept[1])
        add!(rev.lam, one(eltype(V)), rev.x)
    end
    add_outputs!(rev.lam, rec, cotangents, 1, last, rev.v)
    copyto!(y0bar, rev.lam)
    release!(rev)
    again && release!(stages)
    return y0bar
end

"Brings the stages of step `n` back, from the tape or by evaluating the field again."
function recall!(s::Stages, rec::Recording, tableau, field, n, t, h, t1)
    entry = rec.tape[n]
    if isempty(entry.k)
        copyto!(s.g[1], entry.g[1])
        evaluate!(s.k[1], field, t, s.g[1], s.kept[1])
        return take_step!(s, tableau, field, t, h, t1)
    end
    for i in 1:tableau.stages
        s.k[i], s.g[i], s.kept[i] = entry.k[i], entry.g[i], entry.kept[i]
    end
    s.y1 = entry.y1
    return s
end

function sweep!(
        y0bar::V, rec::Recording{V, <:StochasticRungeKutta}, drift::Field, diffusion::Field,
        cotangents::Cotangents
    ) where {V}
    tableau, (; rtol, atol) = rec.method.tableau, rec.settings
    stages = keep_all!(NoiseStages(tableau, rec.y0), tableau, drift, diffusion)
    rev = NoiseReverse(tableau, rec.y0)
    len, last = length(rec.y0), length(rec.outputs)
    for n in accepted(rec):-1:1
        stop_if_asked()
        h, t = rec.dt[n], n == 1 ? rec.times[1] : rec.t[n - 1]
        chunk = rec.tape[n]
        copyto!(stages.H0[1], 1, chunk, 1, len)
        copyto!(stages.dW, 1, chunk, 1 + len, len)
        copyto!(stages.dZ, 1, chunk, 1 + 2len, len)
        take_step!(stages, tableau, drift, diffusion, t, h)
        first = first_output(rec, n, last)
        reverse_step!(
            rev, stages, tableau, drift, diffusion, t, h, rtol, atol;
            Ebar = entry(cotangents.error, n), Sbar = entry(cotangents.stiffness, n),
            outputs = on_the_line(rec, cotangents, first, last, rec.y0)
        )
        last = first - 1
    end
    add_outputs!(rev.base.lam, rec, cotangents, 1, last, rev.base.v)
    return copyto!(y0bar, rev.base.lam)
end

"Index of the first of the outputs up to `last` that lie in step `n`."
function first_output(rec::Recording, n, last)
    while last > 0 && rec.outputs[last].step == n
        last -= 1
    end
    return last + 1
end

column!(v, cotangents, output) = copyto!(v, view(cotangents.ys, :, output.row))

"Adds the cotangents of outputs `first` to `last` that lie at a step's end (or at the start)."
function add_outputs!(lam, rec::Recording, cotangents, first, last, buffer)
    cotangents.ys === nothing && return lam
    for i in max(first, 1):last
        output = rec.outputs[i]
        (output.step == 0 || output.theta == 1.0) || continue
        lam .+= view(cotangents.ys, :, output.row)
    end
    return lam
end

"Weights and cotangents of the outputs strictly inside a Runge-Kutta step."
function interior(rec::Recording, cotangents, tableau, first, last, y)
    list = Tuple{Vector{Float64}, typeof(y)}[]
    cotangents.ys === nothing && return list
    for i in first:last
        output = rec.outputs[i]
        output.theta == 1.0 && continue
        push!(list, (dense_weights(tableau, output.theta), column!(similar(y), cotangents, output)))
    end
    return list
end

"Places and cotangents of the outputs of a stochastic step, its end included."
function on_the_line(rec::Recording, cotangents, first, last, y)
    list = Tuple{Float64, typeof(y)}[]
    cotangents.ys === nothing && return list
    for i in first:last
        output = rec.outputs[i]
        push!(list, (output.theta, column!(similar(y), cotangents, output)))
    end
    return list
end

"""
    reverse_times!(tbar, field, times, ys, ysbar, y0bar)

Adds the cotangents of the save times: the state at t_i moves with the slope there, and the whole
trajectory against the slope at the start when t_0 moves.
"""
function reverse_times!(tbar, field::Field, times, ys, ysbar, y0bar)
    y, slope = similar(y0bar), similar(y0bar)
    for i in eachindex(times)
        copyto!(y, view(ys, :, i))
        evaluate!(slope, field, times[i], y)
        tbar[i] += dot(view(ysbar, :, i), slope)
        i == 1 && (tbar[1] -= dot(y0bar, slope))
    end
    return tbar
end

"""
    adjoint!(y0bar, pbar, method, settings, dynamics, shape, y0, times, ysbar, name)

The trajectory's cotangents by SciMLSensitivity's adjoint `name` ("interpolating", "gauss",
"quadrature", "backsolve"), or by Tracker through the solver ("tracker"): writes `y0bar`, adds to the
arrays `pbar`. The extension has the method, once SciMLSensitivity is loaded.
"""
function adjoint! end
