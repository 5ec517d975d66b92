# The right-hand sides as the solver sees them: type-erased, over flat state vectors.

"""
    Dynamics(f!, vjp!, p, cache)

A field y' = f(t, y; p) with its hand-written vector-Jacobian product:

  - `f!(dy, t, y, p, cache)` writes the slope,
  - `vjp!(ybar, pbar, ct, t, y, p, cache)` writes `ct' * df/dy` to `ybar` and *adds* `ct' * df/dp` to
    the arrays of the tuple `pbar`.

`p` is a tuple of arrays and `cache` whatever the two functions use as scratch. [`WithResiduals`](@ref)
as a fifth argument saves the reverse some of the work, [`WithTangents`](@ref) as a sixth is what the gradient of an
implicit method needs.

    Dynamics(f, p)

A field as a plain function `f(t, y, p...)` returning a new array. Its vector-Jacobian products come
from Zygote: load it first (`using Zygote`). [`InPlace`](@ref) takes a function that writes its slope.
"""
struct Dynamics{F, G, P <: Tuple, C, R, J}
    f::F
    vjp::G
    p::P
    cache::C
    with_residuals::R
    with_tangents::J
end

Dynamics(f, vjp, p::Tuple, cache, with_residuals = nothing) = Dynamics(f, vjp, p, cache, with_residuals, nothing)

function Dynamics(f, p::Tuple)
    function value!(dy, t, y, p, _)
        slope = f(t, y, p...)
        size(slope) == size(y) ||
            throw(FieldError("the JuliaField returned size $(size(slope)) for a state of size $(size(y))"))
        copyto!(dy, slope)
        return nothing
    end
    return Dynamics(value!, (ybar, pbar, ct, t, y, p, _) -> plain_vjp!(ybar, pbar, f, ct, t, y, p), p, nothing)
end

"A function `f(dy, t, y, p...)` that writes its slope."
struct InPlace{F}
    f::F
end

function Dynamics(f::InPlace, p::Tuple)
    function value!(dy, t, y, p, _)
        fill!(dy, NaN)
        f.f(dy, t, y, p...)
        all(isnan, dy) && throw(
            FieldError(
                "the JuliaField, called as (dy, t, y, p...), has written no dy, or NaN to all of it: as (t, y, p...) " *
                    "-> dy it takes the time, the state and each of $(length(p)) parameters"
            )
        )
        return nothing
    end
    return Dynamics(value!, (ybar, pbar, ct, t, y, p, _) -> plain_vjp!(ybar, pbar, f, ct, t, y, p), p, nothing)
end

"Vector-Jacobian product of `f(t, y, p...)`, as [`Dynamics`](@ref) has it; the Zygote extension has the method."
function plain_vjp! end

"""
    WithResiduals(f!, vjp!, sizes, y)

A field's functions where the evaluation keeps residuals for its vector-Jacobian product, in a tuple of
arrays of the given sizes that are like the state `y`:

  - `f!(dy, t, y, p, cache, residuals)` writes the slope and the arrays of `residuals`,
  - `vjp!(ybar, pbar, ct, t, y, p, cache, residuals)` reads them.
"""
struct WithResiduals{R, F, G, S <: Tuple}
    f::F
    vjp::G
    sizes::S
end

function WithResiduals(f, vjp, sizes::Tuple, y)
    R = typeof(map(size -> similar(y, map(zero, size)), sizes))
    return WithResiduals{R, typeof(f), typeof(vjp), typeof(sizes)}(f, vjp, sizes)
end

"""
    WithTangents(jvp!, jvp_vjp!)

A field's Jacobian-vector product and its reverse:

  - `jvp!(dy, tdot, ydot, t, y, p, cache)` writes `df/dt * tdot + df/dy * ydot`,
  - `jvp_vjp!(ybar, pbar, ct, tdot, ydot, t, y, p, cache)` writes the derivative of `ct' * (df/dt * tdot + df/dy * ydot)`
    by the state to `ybar`, and adds those by the parameters to the arrays of `pbar`.
"""
struct WithTangents{F, G}
    jvp::F
    vjp::G
end

"New arrays for residuals."
acquire!(::Type{V}, functions::WithResiduals) where {V} = map(size -> acquire!(V, size), functions.sizes)
acquire!(::Type, ::Nothing) = nothing

"Residuals in the type that the compiler can work with."
typed(::WithResiduals{R}, residuals) where {R} = residuals::R

"""
Holds the residuals of the evaluation at hand. A function pointer that takes an abstract type itself dispatches at
every call, which costs as much as a small product.
"""
const Given = Base.RefValue{Any}

"A function behind a function pointer that is made at the first call: to make it compiles the function."
mutable struct OnDemand{W <: FunctionWrapper}
    const f::Any
    wrapper::Union{Nothing, W}

    OnDemand{W}(f) where {W} = new{W}(f, nothing)
end

Base.convert(::Type{OnDemand{W}}, f::Function) where {W} = OnDemand{W}(f)

@inline function (function_pointer::OnDemand{W})(arguments::Vararg{Any, N}) where {W, N}
    wrapper = function_pointer.wrapper
    wrapper === nothing && (wrapper = function_pointer.wrapper = W(function_pointer.f)::W)
    return wrapper(arguments...)
end

"A field's Jacobian-vector product and its reverse behind function pointers."
struct Tangents{V, T}
    jvp::FunctionWrapper{Nothing, Tuple{V, V, V, T, T}}
    vjp::FunctionWrapper{Nothing, Tuple{V, V, V, V, T, T}}
end

"""
    Field(dynamics, shape, V; columns = 0)

`dynamics` over flat vectors of type `V` that stand for arrays of size `shape`, behind function
pointers: the solver is then compiled once for all fields, not once for each. The states may be complex. Also counts
the calls, and keeps times `within` bounds. With `columns` its value is an array of size (columns, shape...), a diffusion that is a
matrix with so many columns.
`keep` and `back` are value and vector-Jacobian product with residuals: `given` holds what [`residuals`](@ref) gave, arrays
of these `sizes`. `tangents` is
`nothing` where the dynamics have no [`WithTangents`](@ref).
"""
struct Field{V, T}
    value::OnDemand{FunctionWrapper{Nothing, Tuple{V, V, T}}}
    keep::OnDemand{FunctionWrapper{Nothing, Tuple{V, V, T, Given}}}
    vjp::OnDemand{FunctionWrapper{Nothing, Tuple{V, V, V, T}}}
    back::OnDemand{FunctionWrapper{Nothing, Tuple{V, V, V, T, Given}}}
    residuals::FunctionWrapper{Any, Tuple{}}
    tangents::Union{Nothing, Tangents{V, T}}
    calls::Base.RefValue{Int}
    within::Base.RefValue{Tuple{T, T}}
    columns::Int
    rows::Int
    sizes::Any
    given::Given
end

Field(dynamics::Dynamics, shape::Dims, ::Type{V}; pbar = nothing, columns = 0) where {V} =
    Field(dynamics, shape, V, pbar, columns)

function Field(dynamics::Dynamics, shape::Dims, ::Type{V}, pbar, columns) where {V}
    (; f, vjp, p, cache, with_residuals, with_tangents) = dynamics
    shaped = Shaper(shape, V)
    shaped_value = columns == 0 ? shaped : Shaper((columns, shape...), V)
    value(dy, y, t) = (f(shaped_value(dy), t, shaped(y), p, cache); nothing)
    product(ybar, ct, y, t) = (vjp(shaped(ybar), pbar, shaped_value(ct), t, shaped(y), p, cache); nothing)
    function keep(dy, y, t, given)
        with_residuals.f(shaped_value(dy), t, shaped(y), p, cache, typed(with_residuals, given[]))
        return nothing
    end
    function back(ybar, ct, y, t, given)
        with_residuals.vjp(shaped(ybar), pbar, shaped_value(ct), t, shaped(y), p, cache, typed(with_residuals, given[]))
        return nothing
    end
    T = realtype(V)
    rows = isempty(shape) ? 1 : shape[1]
    tangents = tangents_of(with_tangents, V, shaped, pbar, p, cache)
    sizes = with_residuals === nothing ? nothing : with_residuals.sizes
    return Field{V, T}(
        value, keep, product, back, () -> acquire!(V, with_residuals), tangents, Ref(0), Ref((T(-Inf), T(Inf))), columns, rows, sizes,
        Given(nothing)
    )
end

tangents_of(::Nothing, _...) = nothing

function tangents_of(functions::WithTangents, ::Type{V}, shaped, pbar, p, cache) where {V}
    jvp(dy, ydot, y, t, tdot) = (functions.jvp(shaped(dy), tdot, shaped(ydot), t, shaped(y), p, cache); nothing)
    function vjp(ybar, ct, ydot, y, t, tdot)
        functions.vjp(shaped(ybar), pbar, shaped(ct), tdot, shaped(ydot), t, shaped(y), p, cache)
        return nothing
    end
    return Tangents{V, realtype(V)}(jvp, vjp)
end

"Bounds the field's times by those of a segment, or a local step."
function confine!(field::Field, segment)
    field.within[] = (segment.low, segment.high)
    return field
end

"The time that the field is given for t: another one where t is a stop."
time_within(field::Field{V, T}, t) where {V, T} = clamp(T(t), field.within[]...)

"Arrays for the residuals of one evaluation; `nothing` if the field has none."
residuals(field::Field) = field.residuals()

"Number of entries of the noise of a state of length `n`, where the field is its diffusion."
noise_length(field::Field, n) = field.columns == 0 ? n : n ÷ field.rows * field.columns

"Writes the slope at (t, y) to `dy` and counts the evaluation."
function evaluate!(dy::V, field::Field{V, T}, t, y::V, @nospecialize(residuals = nothing)) where {V, T}
    field.calls[] += 1
    return value!(dy, field, t, y, residuals)
end

"Writes the slope at (t, y) to `dy`."
function value!(dy::V, field::Field{V, T}, t, y::V, @nospecialize(residuals = nothing)) where {V, T}
    (; value, keep, given) = field
    time = time_within(field, t)
    residuals === nothing && (value(dy, y, time); return dy)
    given[] = residuals
    keep(dy, y, time, given)
    return dy
end

"""
    vjp!(ybar, field, ct, t, y, residuals = nothing)

Writes `ct' * df/dy` to `ybar` and adds `ct' * df/dp` to the field's parameter cotangents. `residuals`
are those of [`evaluate!`](@ref) at (t, y).
"""
function vjp!(ybar::V, field::Field{V, T}, ct::V, t, y::V, @nospecialize(residuals = nothing)) where {V, T}
    (; vjp, back, given) = field
    time = time_within(field, t)
    residuals === nothing && (vjp(ybar, ct, y, time); return ybar)
    given[] = residuals
    back(ybar, ct, y, time, given)
    return ybar
end

"Writes the derivative of the slope at (t, y) along (tdot, ydot) to `dy`."
function jvp!(dy::V, field::Field{V, T}, tdot, ydot::V, t, y::V) where {V, T}
    field.tangents.jvp(dy, ydot, y, time_within(field, t), T(tdot))
    return dy
end

"Writes the cotangent of `y` for the cotangent `ct` of [`jvp!`](@ref), and adds those of the parameters."
function jvp_vjp!(ybar::V, field::Field{V, T}, ct::V, tdot, ydot::V, t, y::V) where {V, T}
    field.tangents.vjp(ybar, ct, ydot, y, time_within(field, t), T(tdot))
    return ybar
end

"Writes the derivatives of the slope by the state and by the time; `scratch` is an array like the state."
function derivatives!(jacobian, by_time, field::Field, t, y, scratch)
    jacobian!(jacobian, field, t, y, scratch, by_time)
    return jvp!(by_time, field, 1, fill!(scratch, 0), t, y)
end

function jacobian!(jacobian, field::Field, t, y, unit, column)
    fill!(unit, 0)
    for j in eachindex(y)
        unit[j] = 1
        copyto!(view(jacobian, :, j), jvp!(column, field, 0, unit, t, y))
        unit[j] = 0
    end
    return jacobian
end

"The derivatives of a field in the form that SciMLBase's functions are called, with two scratch arrays; `calls` are those of the first."
struct Derivatives{V, T}
    field::Field{V, T}
    scratch::Tuple{V, V}
    calls::Base.RefValue{Int}
end

Derivatives(field::Field, y) = Derivatives(field, (similar(y), similar(y)), Ref(0))

function by_state!(d::Derivatives, jacobian, y, t)
    d.calls[] += 1
    jacobian!(jacobian, d.field, t, y, d.scratch...)
    return nothing
end

by_time!(d::Derivatives, dT, y, t) = (jvp!(dT, d.field, 1, fill!(d.scratch[1], 0), t, y); nothing)

"""
    RightHandSide(field, slopes = [], arguments = [], residuals = [], count = length(slopes))

The field in the form that SciMLBase's functions are called, `(dy, y, p, t)`. It notes slope and
argument of successive calls, up to `count`, in the given buffers, starting at `slot`: the
integrators' own caches reuse the memory of stages that they need no more.
"""
struct RightHandSide{V, T}
    field::Field{V, T}
    slopes::Vector{V}
    arguments::Vector{V}
    residuals::Vector{Any}
    count::Int
    slot::Base.RefValue{Int}
end

RightHandSide(field::Field{V}, slopes = V[], arguments = V[], residuals = Any[], count = length(slopes)) where {V} =
    RightHandSide(field, slopes, arguments, residuals, count, Ref(1))

function (rhs::RightHandSide)(dy, y, _, t)
    slot = rhs.slot[]
    evaluate!(dy, rhs.field, t, y, slot <= length(rhs.residuals) ? rhs.residuals[slot] : nothing)
    if slot <= rhs.count
        copyto!(rhs.slopes[slot], dy)
        copyto!(rhs.arguments[slot], y)
        rhs.slot[] = slot + 1
    end
    return nothing
end

"A diffusion that is a matrix."
(rhs::RightHandSide)(matrix::NoiseMatrix, y, p, t) = rhs(matrix.entries, y, p, t)
