# Fields that arrive as source code: the names they may use, and their compilation.

using FastBroadcast: @.., FastBroadcast
using NaNMath: NaNMath
using NNlib: NNlib
using SpecialFunctions: SpecialFunctions

"What the source of an exported field may use beside Base; python/regnde/_engines/julia/operators.py lists it."
const SCOPE = (
    Symbol("@..") => getfield(FastBroadcast, Symbol("@..")),
    :mul! => mul!,
    :NaNMath => NaNMath,
    :fast_exp => fast_exp,
    :fast_tanh => fast_tanh,
    :fast_sigmoid => fast_sigmoid,
    :erf => SpecialFunctions.erf,
    :batched_mul => NNlib.batched_mul,
    :batched_mul! => NNlib.batched_mul!,
    :batched_transpose => NNlib.batched_transpose,
    :DenseConvDims => NNlib.DenseConvDims,
    :conv => NNlib.conv,
    :conv! => NNlib.conv!,
    :∇conv_data => NNlib.∇conv_data,
    :∇conv_data! => NNlib.∇conv_data!,
    :∇conv_filter => NNlib.∇conv_filter,
    :∇conv_filter! => NNlib.∇conv_filter!,
)

"""
    Code

The functions of a field that was given as source: in-place value and vector-Jacobian product with
their cache and, if it has them, those of a [`Keeping`](@ref) as a tuple; or (`vjp === nothing`) one
plain function. `space` holds them: the garbage collector does not find a function's type by the
function. `scratch` is cache and `Keeping` for the state size `scratch_for`.
"""
mutable struct Code
    const space::Module
    const f::Any
    const vjp::Any
    const cache::Any
    const keeping::Any
    scratch::Any
    scratch_for::Any
end

Code(space, f, vjp = nothing, cache = nothing, keeping = nothing) =
    Code(space, f, vjp, cache, keeping, nothing, nothing)

"""
    compile(source, name) -> Code

Evaluates source that defines `name!`, `name_vjp!`, `name_cache` and possibly `name_keep!`,
`name_back!`, `name_kept` in a module of its own.
"""
function compile(source::AbstractString, name::AbstractString)
    space = Module(Symbol(:Field_, name))
    for (symbol, value) in SCOPE
        Core.eval(space, :(const $symbol = $value))
    end
    include_string(space, source, "field $name")
    part(suffix) = Core.eval(space, Symbol(name, suffix))
    keeps = isdefined(space, Symbol(name, "_kept"))
    keeping = keeps ? (part("_keep!"), part("_back!"), part("_kept")) : nothing
    return Code(space, part("!"), part("_vjp!"), part("_cache"), keeping)
end

"""
    compile_plain(source) -> Code

Evaluates source whose value is a function `(t, y, p...) -> dy`.
"""
function compile_plain(source::AbstractString)
    space = Module(:JuliaField)
    f = include_string(space, source, "JuliaField")
    f isa Function || throw(ArgumentError("the source of a JuliaField must end in a function (t, y, p...) -> dy"))
    return Code(space, f)
end

"The field over parameters `p` for states like `y`."
function dynamics(code::Code, y, p::Tuple)
    code.vjp === nothing && return Dynamics(code.f, p)
    key = (size(y), typeof(y), map(size, p))
    if code.scratch_for != key
        code.scratch, code.scratch_for = (code.cache(y, p), keeping(code, y, p)), key
    end
    return Dynamics(code.f, code.vjp, p, code.scratch...)
end

function keeping(code::Code, y, p)
    code.keeping === nothing && return nothing
    keep, back, sizes = code.keeping
    return Keeping(keep, back, sizes(y, p), y)
end
