# The right-hand sides as the solver sees them: type-erased, over flat state vectors.

"""
    Dynamics(f!, vjp!, p, cache)

A field y' = f(t, y; p) with its hand-written vector-Jacobian product:

  - `f!(dy, t, y, p, cache)` writes the slope,
  - `vjp!(ybar, pbar, ct, t, y, p, cache)` writes `ct' * df/dy` to `ybar` and *adds* `ct' * df/dp` to
    the arrays of the tuple `pbar`.

`p` is a tuple of arrays and `cache` whatever the two functions use as scratch.

    Dynamics(f, p)

A field as a plain function `f(t, y, p...)` returning a new array. Its vector-Jacobian products come
from Zygote: load it first (`using Zygote`).
"""
struct Dynamics{F, G, P <: Tuple, C}
    f::F
    vjp::G
    p::P
    cache::C
end

Dynamics(f, p::Tuple) = Dynamics(f, nothing, p, nothing)

const PlainDynamics = Dynamics{<:Any, Nothing}

"""
    plain_vjp(f, ct, t, y, p) -> (ybar, pbar)

Vector-Jacobian product of `f(t, y, p...)`; the Zygote extension has the method.
"""
function plain_vjp end

"""
    Field(dynamics, shape, V)

`dynamics` over flat vectors of type `V` that stand for arrays of size `shape`, behind function
pointers: the solver is then compiled once for all fields, not once for each. Also counts the calls.
"""
struct Field{V, T}
    value::FunctionWrapper{Nothing, Tuple{V, V, T}}
    vjp::FunctionWrapper{Nothing, Tuple{V, V, V, T}}
    calls::Base.RefValue{Int}
end

function Field(dynamics::Dynamics, shape::Dims, ::Type{V}; pbar = nothing) where {V}
    T = eltype(V)
    value = ValueCall{typeof(dynamics), length(shape)}(dynamics, shape)
    vjp = VJPCall{typeof(dynamics), length(shape), typeof(pbar)}(dynamics, shape, pbar)
    return Field{V, T}(value, vjp, Ref(0))
end

struct ValueCall{D, N}
    dynamics::D
    shape::NTuple{N, Int}
end

struct VJPCall{D, N, P}
    dynamics::D
    shape::NTuple{N, Int}
    pbar::P
end

shaped(x, ::NTuple{1, Int}) = x
shaped(x, shape::Dims) = reshape(x, shape)

function (call::ValueCall)(dy, y, t)
    (; f, p, cache) = call.dynamics
    f(shaped(dy, call.shape), t, shaped(y, call.shape), p, cache)
    return nothing
end

function (call::ValueCall{<:PlainDynamics})(dy, y, t)
    state = shaped(y, call.shape)
    slope = call.dynamics.f(t, state, call.dynamics.p...)
    size(slope) == size(state) || throw(
        DimensionMismatch("the field returned size $(size(slope)) for a state of size $(size(state))")
    )
    copyto!(dy, slope)
    return nothing
end

function (call::VJPCall)(ybar, ct, y, t)
    (; vjp, p, cache) = call.dynamics
    vjp(shaped(ybar, call.shape), call.pbar, shaped(ct, call.shape), t, shaped(y, call.shape), p, cache)
    return nothing
end

function (call::VJPCall{<:PlainDynamics})(ybar, ct, y, t)
    (; f, p) = call.dynamics
    x, q = plain_vjp(f, shaped(ct, call.shape), t, shaped(y, call.shape), p)
    x === nothing ? fill!(ybar, 0) : copyto!(ybar, x)
    for (total, part) in zip(call.pbar, q)
        part === nothing || (total .+= part)
    end
    return nothing
end

"""
    evaluate!(dy, field, t, y)

Writes the slope at (t, y) to `dy` and counts the evaluation.
"""
function evaluate!(dy::V, field::Field{V, T}, t, y::V) where {V, T}
    field.calls[] += 1
    field.value(dy, y, T(t))
    return dy
end

"""
    vjp!(ybar, field, ct, t, y)

Writes `ct' * df/dy` to `ybar` and adds `ct' * df/dp` to the field's parameter cotangents.
"""
function vjp!(ybar::V, field::Field{V, T}, ct::V, t, y::V) where {V, T}
    field.vjp(ybar, ct, y, T(t))
    return ybar
end

"""
    RightHandSide(field, slopes = [], arguments = [])

The field in the form that SciMLBase's functions are called, `(dy, y, p, t)`. It notes slope and
argument of successive calls in the given buffers, starting at `slot`: the integrators' own caches
reuse the memory of stages that they need no more.
"""
struct RightHandSide{V, T}
    field::Field{V, T}
    slopes::Vector{V}
    arguments::Vector{V}
    slot::Base.RefValue{Int}
end

RightHandSide(field::Field{V}, slopes = V[], arguments = V[]) where {V} =
    RightHandSide(field, slopes, arguments, Ref(1))

function (rhs::RightHandSide)(dy, y, _, t)
    evaluate!(dy, rhs.field, t, y)
    slot = rhs.slot[]
    if slot <= length(rhs.slopes)
        copyto!(rhs.slopes[slot], dy)
        copyto!(rhs.arguments[slot], y)
        rhs.slot[] = slot + 1
    end
    return nothing
end
