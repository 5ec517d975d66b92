# The reverse sweep over the accepted steps: the exact gradient of the discrete solution, with times and
# step sizes constant. Nothing is allocated inside the loop.

"""
Cotangents of a recording, each possibly `nothing`: of the saved states, of the two records, of the steps' pieces
(columns as in `Recording.pieces`); and where to add those of the stops, in the order in which they are passed.
"""
struct Cotangents{Y}
    ys::Union{Nothing, Y}
    error::Union{Nothing, Vector{Float64}}
    stiffness::Union{Nothing, Vector{Float64}}
    pieces::Union{Nothing, Y}
    stops::Union{Nothing, Vector{Float64}}

    Cotangents{Y}(ys, error, stiffness, pieces, stops) where {Y} = new{Y}(ys, error, stiffness, pieces, stops)
end

function Cotangents(rec::Recording{V, M, O}, ys, error, stiffness; pieces = nothing, stops = nothing) where {V, M, O}
    flat(x) = x === nothing ? nothing : reshape(x, length(rec.y0), :)
    return Cotangents{O}(flat(ys), error, stiffness, flat(pieces), stops)
end

cotangent_of(::Nothing, n) = 0.0
cotangent_of(list, n) = Float64(list[n])

"""
    reverse!(y0bar, recording, field..., cotangents) -> y0bar
    reverse!(y0bar, recording, kept, field, cotangents) -> y0bar

Writes the cotangent of the initial state; those of the parameters are added to the arrays that the
fields were made with. `kept` refers to the [`Sweep`](@ref) of the solve before, by the same method, or to `nothing`; it is
then made.
"""
function reverse!(y0bar, rec::Recording, args...)
    y0bar .= 0
    if accepted(rec) == 0
        return add_outputs!(y0bar, rec, args[end], 1, length(rec.outputs))
    end
    length(rec.tape) == accepted(rec) || throw(
        ArgumentError("the solve has no tape for a gradient: solve again with `keep = :stages` or `:states`")
    )
    return sweep!(y0bar, rec, args...)
end

"Buffers of a reverse sweep: of the steps, and of their reverse. `owned`: the steps' arrays are none of the tape."
struct Sweep{S, V}
    steps::S
    rev::Reverse{V}
    owned::Bool
end

"With `inside`, also those of stages of an interpolant."
sweep_buffers(rec::Recording, field, inside) = Sweep(
    step_buffers(rec, field), reverse_buffers(rec.method, rec.y0, inside),
    rec.method isa RungeKutta && rec.settings.keep === :states
)

function release!(buffers::Sweep)
    release!(buffers.rev)
    buffers.owned && release!(buffers.steps)
    return nothing
end

const OneField = Union{RungeKutta, Rosenbrock}

function sweep!(y0bar::V, rec::Recording{V, <:OneField}, field::Field, cotangents::Cotangents) where {V}
    dense = cotangents.pieces !== nothing
    buffers = sweep_buffers(rec, field, dense || any(output -> output.step > 0 && output.theta != 1, rec.outputs))
    sweep!(y0bar, rec, buffers, field, cotangents)
    release!(buffers)
    return y0bar
end

function sweep!(y0bar::V, rec::Recording{V, <:OneField}, kept::Ref, field::Field, cotangents::Cotangents) where {V}
    kept[] === nothing && (kept[] = sweep_buffers(rec, field, true))
    return sweep!(y0bar, rec, kept[], field, cotangents)
end

function sweep!(
        y0bar::V, rec::Recording{V, <:OneField}, buffers::Sweep, field::Field, cotangents::Cotangents
    ) where {V}
    (; steps, rev) = buffers
    fill!(rev.lam, 0)
    rev.carry_live[] = false
    GC.@preserve steps sweep_steps!(rev, rec, steps, field, cotangents)
    copyto!(y0bar, rev.lam)
    return y0bar
end

function sweep_steps!(rev::Reverse, rec::Recording, steps, field::Field, cotangents::Cotangents)
    (; rtol, atol) = rec.settings
    last = length(rec.outputs)
    for n in accepted(rec):-1:1
        check_stop_flag()
        confine!(field, rec.segments[segment_at(rec, rec.t[n])])
        step, tableau = recall!(steps, rec, n, field)
        first = first_output(rec, n, last)
        inside = interior(rec, cotangents, tableau, first, last, rec.y0)
        pieces = pieces_of(rec, cotangents, n)
        (isempty(inside) && isempty(pieces)) || extra_stages!(step, tableau, field; keep = true)
        add_outputs!(rev.lam, rec, cotangents, first, last)
        reverse_step!(
            rev, step, tableau, field, rtol, atol; Ebar = cotangent_of(cotangents.error, n),
            Sbar = cotangent_of(cotangents.stiffness, n), outputs = inside, pieces
        )
        anew = n == 1 || segment_at(rec, rec.t[n - 1]) != segment_at(rec, rec.t[n])
        # no stage is carried over a stop, or to another method
        (anew || implicit(rec, n - 1) != implicit(rec, n)) && reverse_first_stage!(rev, field, step)
        anew && n > 1 && cotangents.stops !== nothing && reverse_stop!(cotangents.stops, rev, rec, field, step, n)
        last = first - 1
    end
    add_outputs!(rev.lam, rec, cotangents, 1, last)
    return rev
end

"Whether an implicit method made step `n`."
implicit(rec::Recording, n) = !isempty(rec.implicit) && rec.implicit[n]

"Buffers of the steps of a solve."
function step_buffers(rec::Recording{<:AbstractVector, <:RungeKutta}, field)
    tableau = rec.method.tableau
    rec.settings.keep === :states && return keep_residuals!(Step(tableau, rec.y0), tableau, field)
    return isempty(rec.tape[1].k) ? packed(tableau, rec.y0, field)::PackedStep : empty_step(tableau, rec.y0)
end

function step_buffers(rec::Recording{<:AbstractVector, <:Rosenbrock}, field)
    (; explicit, tableau, mass) = rec.method
    field.tangents === nothing && throw(
        ArgumentError("the gradient of an implicit method needs the field's Jacobian-vector product: `WithTangents`")
    )
    tsit5 = explicit === nothing ? nothing : keep_residuals!(Step(explicit, rec.y0), explicit, field)
    return tsit5, RosenbrockStep(tableau, rec.y0, mass)
end

"Buffers of their reverse; `inside`: also of the stages of an interpolant."
reverse_buffers(m::RungeKutta, y, inside) = Reverse(m.tableau, y, inside)
reverse_buffers(m::Rosenbrock, y, _) = Reverse(piece_count(m) - 1, y)

"Brings step `n` back; returns it with its method's coefficients."
recall!(step::Step, rec::Recording, n, field) =
    (recall!(step, rec.tape[n], rec.method.tableau, field), rec.method.tableau)
recall!(packed::PackedStep, rec::Recording, n, field) = (recall!(packed, rec.tape[n]), rec.method.tableau)

function recall!((explicit, step)::Tuple, rec::Recording, n, field)
    t, h, t1 = n == 1 ? rec.times[1] : rec.t[n - 1], rec.dt[n], rec.t[n]
    if rec.implicit[n]
        copyto!(step.arguments[1], rec.tape[n])
        return take_step!(step, rec.method.tableau, field, t, h, t1), rec.method.tableau
    end
    copyto!(explicit.arguments[1], rec.tape[n])
    evaluate!(explicit.k[1], field, t, explicit.arguments[1], explicit.residuals[1])
    return take_step!(explicit, rec.method.explicit, field, t, h, t1), rec.method.explicit
end

"The index of the segment that a time lies in; a stop belongs to the segment that it ends."
function segment_at(rec::Recording, t)
    falling = rec.times[end] < rec.times[1]
    return searchsortedfirst(rec.segments, t; lt = (s, t) -> falling ? s.t_end > t : s.t_end < t)
end

"""
Adds the cotangent of the stop where step `n` begins: where the stop moves, the state there moves with the slope
before it, and from there on against the slope after it, which is the step's first. Evaluates the former.
"""
function reverse_stop!(stopsbar, rev::Reverse, rec::Recording, field, step, n)
    here = segment_at(rec, rec.t[n - 1])
    confine!(field, rec.segments[here])
    evaluate!(rev.x, field, rec.t[n - 1], step.arguments[1])
    stopsbar[here] += real(dot(rev.lam, rev.x) - dot(rev.lam, first_slope(step)))
    return nothing
end

"Brings a step back, from the tape or by taking it again."
function recall!(step::Step, entry::Step, tableau, field)
    (; t, h, t1) = entry
    if isempty(entry.k)
        copyto!(step.arguments[1], entry.arguments[1])
        evaluate!(step.k[1], field, t, step.arguments[1], step.residuals[1])
        return take_step!(step, tableau, field, t, h, t1)
    end
    for i in 1:tableau.stages
        step.k[i], step.arguments[i], step.residuals[i] = entry.k[i], entry.arguments[i], entry.residuals[i]
    end
    step.t, step.h, step.t1, step.y1 = t, h, t1, entry.y1
    return step
end

function sweep!(
        y0bar::V, rec::Recording{V, <:StochasticMethod}, drift::Field, diffusion::Field, cotangents::Cotangents
    ) where {V}
    (; rtol, atol) = rec.settings
    step, formula, rev = stochastic_step(rec.method, rec.y0, drift, diffusion)
    lam, last = state_cotangent(rev), length(rec.outputs)
    for n in accepted(rec):-1:1
        check_stop_flag()
        foreach(field -> confine!(field, rec.segments[segment_at(rec, rec.t[n])]), (drift, diffusion))
        h, t = rec.dt[n], n == 1 ? rec.times[1] : rec.t[n - 1]
        recall!(step, rec.tape[n], formula, drift, diffusion, t, h, rec.t[n])
        first = first_output(rec, n, last)
        outputs = on_the_line(rec, cotangents, first, last, rec.y0)
        for theta in (cotangents.pieces === nothing ? () : (0, 1))
            push!(outputs, (theta, copyto!(similar(rec.y0), view(cotangents.pieces, :, 2n - 1 + theta))))
        end
        reverse_step!(
            rev, step, formula, drift, diffusion, rtol, atol; Ebar = cotangent_of(cotangents.error, n),
            Sbar = cotangent_of(cotangents.stiffness, n), outputs
        )
        last = first - 1
    end
    add_outputs!(lam, rec, cotangents, 1, last)
    return copyto!(y0bar, lam)
end

"Buffers of a step of a stochastic method, its coefficients, and buffers of its reverse."
function stochastic_step(m::StochasticRungeKutta, y, drift, diffusion)
    step = keep_residuals!(SDEStep(m.tableau, y), m.tableau, drift, diffusion)
    return step, m.tableau, SDEReverse(m.tableau, y)
end

function stochastic_step(m::StochasticScheme, y, drift, diffusion)
    step = keep_residuals!(SchemeStep(m.scheme, y, diffusion), m.scheme, drift, diffusion)
    return step, m.scheme, SchemeReverse(step)
end

"Takes a step again from what the tape has of it."
function recall!(step::SDEStep, entry, tableau::NoiseTableau, drift, diffusion, t, h, t1)
    unpack!(entry, step.H0[1], step.dW, step.dZ)
    return take_sde_step!(step, tableau, drift, diffusion, t, h, t1)
end

function recall!(step::SchemeStep, entry, scheme::Scheme, drift, diffusion, t, h, t1)
    unpack!(entry, step.arguments[1], step.dW, (has_second(scheme) ? (step.dZ,) : ())...)
    return take_scheme_step!(step, scheme, drift, diffusion, t, h, t1)
end

"Copies an array's parts, which follow each other, to others."
function unpack!(entry, parts...)
    from = 1
    for part in parts
        copyto!(part, 1, entry, from, length(part))
        from += length(part)
    end
    return nothing
end

"Cotangents of the pieces of step `n`, as columns; none if the step has no pieces, or they no cotangents."
function pieces_of(rec::Recording, cotangents, n)
    cotangents.pieces === nothing && return view(rec.ys, :, 1:0)
    place, count = searchsorted(rec.piece_steps, n), piece_count(rec.method)
    return view(cotangents.pieces, :, ((first(place) - 1) * count + 1):(last(place) * count))
end

"Index of the first of the outputs up to `last` that lie in step `n`."
function first_output(rec::Recording, n, last)
    while last > 0 && rec.outputs[last].step == n
        last -= 1
    end
    return last + 1
end

"Adds the cotangents of outputs `first` to `last` that lie at a step's end (or at the start)."
function add_outputs!(lam, rec::Recording, cotangents, first, last)
    cotangents.ys === nothing && return lam
    for i in first:last
        output = rec.outputs[i]
        (output.step == 0 || output.theta == 1.0) || continue
        lam .+= view(cotangents.ys, :, output.row)
    end
    return lam
end

"Weights and cotangents of the outputs strictly inside a Runge-Kutta step."
function interior(rec::Recording, cotangents, tableau, first, last, y)
    list = Tuple{Vector{Float64}, typeof(y)}[]
    for output in view(rec.outputs, first:last)
        (output.theta == 1.0 || cotangents.ys === nothing) && continue
        push!(list, (dense_weights(tableau, output.theta), column(cotangents, output, y)))
    end
    return list
end

"Places and cotangents of the outputs of a stochastic step, its end included."
function on_the_line(rec::Recording, cotangents, first, last, y)
    cotangents.ys === nothing && return Tuple{Float64, typeof(y)}[]
    return [(output.theta, column(cotangents, output, y)) for output in view(rec.outputs, first:last)]
end

column(cotangents, output, y) = copyto!(similar(y), view(cotangents.ys, :, output.row))

"""
    reverse_times!(tbar, recording, field, ys, ysbar, y0bar)

Adds the cotangents of the save times: the state at t_i moves with the slope there, at a stop that before it, and
the whole trajectory against the slope at the start when t_0 moves.
"""
function reverse_times!(tbar, rec::Recording, field::Field, ys, ysbar, y0bar)
    y, slope, times = similar(y0bar), similar(y0bar), rec.times
    for i in 1:rec.saved  # a solve that stopped has no state at the others
        confine!(field, rec.segments[segment_at(rec, times[i])])
        copyto!(y, view(ys, :, i))
        evaluate!(slope, field, times[i], y)
        tbar[i] += real(dot(view(ysbar, :, i), slope))
        i == 1 && (tbar[1] -= real(dot(y0bar, slope)))
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
