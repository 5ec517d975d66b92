# Events: conditions whose sign is compared before and after each step. Where a condition is zero inside the step is
# found later, by its caller, on the step's interpolant.

"""
    Conditions(fields, directions, terminal)

What to look for: each condition is a field whose value has the condition in its first entry; the direction of its
passage through zero in the order of the solve (1, -1, or 0 for both); whether it stops the solve.
"""
struct Conditions{V, T}
    fields::Vector{Field{V, T}}
    directions::Vector{Int}
    terminal::Vector{Bool}
end

"A step, or its part from time `start` on, in which a condition has passed zero (or is NaN), with all their values."
struct Crossing
    step::Int
    start::Float64
    before::Vector{Float64}
    after::Vector{Float64}
end

"Conditions on their way through a solve: `values` are those at the last step's end."
struct Watch{V, T}
    conditions::Conditions{V, T}
    t0::Float64
    values::Vector{Float64}
    scratch::V
end

function Watch(conditions::Conditions, t0, y0)
    scratch = similar(y0)
    return Watch(conditions, t0, values!(zeros(length(conditions.fields)), conditions, t0, y0, scratch), scratch)
end

"Writes the values of all conditions at (t, y)."
function values!(values, conditions::Conditions, t, y, scratch)
    for (i, field) in enumerate(conditions.fields)
        value!(scratch, field, t, y)
        values[i] = real(first(Array(view(scratch, 1:1))))
    end
    return values
end

"""
    crossing(inside, watch, n, t, t1, y1) -> Crossing or nothing

Compares the values before step `n`, from `t` to `t1`, with those at its end `y1`; `inside(time)` is the state in it.
A zero where the step starts is none of this step: what counts is the sign behind it.
"""
function crossing(inside, watch::Watch, n, t, t1, y1)
    (; conditions, values, scratch) = watch
    start, before = t, copy(values)
    values!(values, conditions, t1, y1, scratch)
    if t == watch.t0 || any(iszero, before)
        start = behind(t, t1, realtype(y1))
        values!(before, conditions, start, inside(start), scratch)
    end
    found = any(passes(conditions.directions[i], before[i], values[i]) for i in eachindex(values))
    return found || any(isnan, before) || any(isnan, values) ? Crossing(n, start, before, copy(values)) : nothing
end

"Whether a condition passes zero in its direction between two values."
function passes(direction, before, after)
    rises, falls = before < 0 <= after, before > 0 >= after
    return direction > 0 ? rises : direction < 0 ? falls : rises || falls
end

"Whether one of the conditions that has passed zero stops the solve; a NaN, which has no sign, does too."
function stops(conditions::Conditions, here::Crossing)
    return any(eachindex(here.before)) do i
        isnan(here.before[i]) || isnan(here.after[i]) ||
            (conditions.terminal[i] && passes(conditions.directions[i], here.before[i], here.after[i]))
    end
end

const NEAR = 100  # in units of the clock's resolution: a zero this close to a step's start is a zero at it

"A time in the step from t to t1, so close behind t that a zero between them counts as one at t."
function behind(t, t1, ::Type{T}) where {T}
    near = max(NEAR * eps(abs(t)), sqrt(eps(T)) * abs(t1 - t))
    return t + copysign(min(near, abs(t1 - t)), t1 - t)
end
