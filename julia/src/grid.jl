# Steps of fixed size: they end at given times, without control.

"Solves along `settings.grid`, the ends of the steps."
function forward!(rec::Recording{<:AbstractVector, <:FixedStep}, field::Field; noise = nothing, conditions = nothing)
    begin!(rec, (field,)) || return rec
    steps = recorder(rec.method, rec.settings, rec.y0, field)
    watch!(steps, conditions, rec)
    rec.retired = kind_of(steps)
    rec.dt_first = rec.settings.grid[1] - rec.times[1]
    walk!(rec, steps, field)
    release!(steps)
    return rec
end

function walk!(rec::Recording, recorder::StageRecorder, field)
    (; step, tableau) = recorder
    t, current, known = rec.times[1], 1, false  # whether the slope at t is in `step.k[1]`
    copyto!(step.arguments[1], rec.y0)
    all(isfinite, rec.y0) || return fail!(rec, step, :nonfinite, "y0 is not finite")
    for t1 in rec.settings.grid
        check_stop_flag()
        t1 == t && return fail!(rec, step, :underflow, "the step size fell below the clock's resolution")
        accepted(rec) == 0 || advance!(recorder, known)
        known || evaluate!(step.k[1], field, t, step.arguments[1], step.residuals[1])
        take_step!(step, tableau, field, t, t1 - t, t1)
        if !all(isfinite, step.y1)
            bad = count(!isfinite, step.y1)
            return fail!(rec, step, :nonfinite, "the state is not finite: $bad of $(length(step.y1)) components")
        end
        known = add_step!(rec, recorder)
        rec.status === :success || return rec
        if t1 == rec.segments[current].t_end && current < length(rec.segments)
            current += 1
            confine!(field, rec.segments[current])
            known = false  # the field may have jumped
        end
        t = t1
    end
    t == rec.times[end] && return rec
    return fail!(rec, step, :steps, "$(rec.settings.max_steps) steps did not reach the end time $(rec.times[end])")
end

function fail!(rec::Recording, step::Step, status, reason)
    rec.status, rec.reason, rec.dt_last = status, reason, step.h
    return rec
end

"Makes the step's end the start of the next one; the slope there may be `known` as the interpolant's last stage."
function advance!(recorder::StageRecorder, known)
    (; step, tableau) = recorder
    y1, last = step.y1, total(tableau)
    leave_tape!(recorder)
    copyto!(step.arguments[1], y1)
    if known
        (; k, residuals) = step
        k[1], k[last] = k[last], k[1]
        residuals[1], residuals[last] = residuals[last], residuals[1]
    end
    return step
end

"Ends of steps of size `h` from t0 to each of `ends` and, after it, to the next; no rounding adds up."
function uniform(t0, ends, h)
    list = Float64[]
    for t1 in ends
        slack = NEAR * eps(max(abs(t0), abs(t1)))
        count = max(ceil(Int, (abs(t1 - t0) - slack) / h), 1)
        append!(list, (t0 + n * copysign(h, t1 - t0) for n in 1:(count - 1)))
        push!(list, t1)
        t0 = t1
    end
    return list
end
