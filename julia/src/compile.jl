# Fields that arrive as source code: the names they may use, and their compilation.

"What the source of an exported field may use beside Base."
const FIELD_NAMES = (
    Symbol("@..") => getfield(FastBroadcast, Symbol("@..")),
    Symbol("@rows") => getfield(@__MODULE__, Symbol("@rows")),
    :largest! => largest!,
    :mul! => product!,
    :NaNMath => NaNMath,
    :fast_exp => fast_exp,
    :fast_tanh => fast_tanh,
    :fast_sigmoid => fast_sigmoid,
    :fast_expm1 => fast_expm1,
    :fast_log => fast_log,
    :fast_log1p => fast_log1p,
    :fast_log2 => fast_log2,
    :fast_pow => fast_pow,
    :fast_sin => fast_sin,
    :fast_cos => fast_cos,
    :fast_tan => fast_tan,
    :fast_atan => fast_atan,
    :fast_erf => fast_erf,
    :erfc => SpecialFunctions.erfc,
    :erfinv => SpecialFunctions.erfinv,
    :digamma => SpecialFunctions.digamma,
    :log_gamma => log_gamma,
    :whole_Int64 => whole_Int64,
    :whole_Int32 => whole_Int32,
    :whole_UInt8 => whole_UInt8,
    :polygamma => SpecialFunctions.polygamma,
    :batched_mul! => NNlib.batched_mul!,
    :batched_transpose => NNlib.batched_transpose,
    :DenseConvDims => NNlib.DenseConvDims,
    :conv! => convolve!,
    :∇conv_data! => convolve_data!,
    :∇conv_filter! => convolve_filter!,
    :index_select! => index_select!,
    :index_add! => index_add!,
    :index_copy! => index_copy!,
    :gather! => gather!,
    :scatter_add! => scatter_add!,
    :scatter! => scatter!,
    :c2c_plan => c2c_plan,
    :r2c_plan => r2c_plan,
    :c2r_plan => c2r_plan,
    :transform! => transform!,
    :linear_solve! => linear_solve!,
    :triangular_solve! => triangular_solve!,
    :inverse! => inverse!,
    :matrix_exp! => matrix_exp!,
    :cholesky_factor! => cholesky_factor!,
    :symmetric_values! => symmetric_values!,
    :symmetric_vectors! => symmetric_vectors!,
    :determinant! => determinant!,
    :determinant_sign! => determinant_sign!,
    :log_determinant! => log_determinant!,
)

"""
    Code

A field that was given as source. An exported one has its value and vector-Jacobian product in place,
functions that make its buffers and tell the sizes of its residuals and, if it has any, the functions of
[`WithResiduals`](@ref) as a pair and its [`WithTangents`](@ref); a plain one (`vjp === nothing`) is one function. `space` holds them:
the garbage collector does not find a function's type by the function. `made` are the arguments of
[`Dynamics`](@ref) that depend on the state's size, `made_for`.
"""
mutable struct Code
    const space::Module
    const f::Any
    const vjp::Any
    const arrays::Any
    const pair::Any
    const tangents::Any
    made::Any
    made_for::Any
end

Code(space, f, vjp = nothing, arrays = nothing, pair = nothing, tangents = nothing) =
    Code(space, f, vjp, arrays, pair, tangents, nothing, nothing)

"""
    compile(source, name) -> Code

Evaluates source that defines `name!`, `name_vjp!` and possibly `name_keep!`, `name_back!`, `name_jvp!`,
`name_jvp_vjp!`, and whose value is `(; buffers, residuals)`: `buffers(y, B)` makes the fields' cache for states like `y` of batch
size `B`, `residuals(B)` are the residuals' sizes.
"""
function compile(source::AbstractString, name::AbstractString)
    space = Module(Symbol(:Field_, name))
    for (symbol, value) in FIELD_NAMES
        Core.eval(space, :(const $symbol = $value))
    end
    arrays = include_string(space, source, "field $name")
    named(suffix) = Core.eval(space, Symbol(name, suffix))
    pair = isdefined(space, Symbol(name, "_keep!")) ? (named("_keep!"), named("_back!")) : nothing
    tangents = isdefined(space, Symbol(name, "_jvp!")) ? WithTangents(named("_jvp!"), named("_jvp_vjp!")) : nothing
    return Code(space, named("!"), named("_vjp!"), arrays, pair, tangents)
end

"What is wrong with a field that a user gave, said to that user."
struct FieldError <: Exception
    text::String
end

Base.showerror(io::IO, e::FieldError) = print(io, e.text)

"Evaluates source whose value is a function `(t, y, p...) -> dy`, or `(dy, t, y, p...)` that writes `dy`."
function compile_plain(source::AbstractString)
    space = Module(:JuliaField)
    f = include_string(space, source, JULIA_FIELD)
    f isa Function || throw(FieldError("the source of a JuliaField must end in a function (t, y, p...) -> dy, not in $(repr(f))"))
    return Code(space, f)
end

"The file name of a `JuliaField`'s source."
const JULIA_FIELD = "JuliaField"

"""
    explained(exception, backtrace) -> String

An error at a line of a `JuliaField`, or about it, without the stack of this package; "" for other errors.
"""
function explained(exception, backtrace)
    exception isa FieldError && return exception.text
    line = 0
    if exception isa LoadError && exception.file == JULIA_FIELD
        line, exception = exception.line, exception.error
    elseif backtrace !== nothing
        frames = Base.stacktrace(backtrace)
        found = findfirst(frame -> basename(String(frame.file)) == JULIA_FIELD, frames)
        found === nothing || (line = frames[found].line)
    end
    line == 0 && return ""
    text = join(first(split(sprint(showerror, exception), '\n'), 4), "\n")
    return "$text\n  at line $line of the JuliaField"
end

"The field over parameters `p` for states like `y`; its buffers are `shared` with the next one of the same sizes."
function dynamics(code::Code, y, @nospecialize(p::Tuple), shared = true)
    code.vjp === nothing && return plain_dynamics(code, y, p)
    buffers, residuals = shared ? shared_arrays(code, y, p) : arrays_of(code, y)
    return Dynamics(code.f, code.vjp, p, buffers, residuals, code.tangents)
end

"The arrays of the last call, if it was for the same sizes."
function shared_arrays(code::Code, y, @nospecialize(p::Tuple))
    key = typeof(y), sizes(y, p)
    code.made_for == key || ((code.made, code.made_for) = (arrays_of(code, y), key))
    return code.made
end

"The sizes of a state and of parameters in one list, each behind its number of dimensions."
function sizes(y, @nospecialize(p::Tuple))
    list = Int[ndims(y), size(y)...]
    for x in p
        append!(push!(list, ndims(x)), size(x))
    end
    return list
end

"An exported field's buffers, and its functions with residuals."
function arrays_of(code::Code, y)
    batch = ndims(y) == 0 ? 1 : size(y, ndims(y))
    residuals = code.pair === nothing ? nothing : WithResiduals(code.pair..., code.arrays.residuals(batch), y)
    return code.arrays.buffers(y, batch), residuals
end

function plain_dynamics(code::Code, y, p)
    t = zero(realtype(y))
    applicable(code.f, t, y, p...) && return Dynamics(code.f, p)
    applicable(code.f, y, t, y, p...) && return Dynamics(InPlace(code.f), p)
    parameters = length(p) == 1 ? "1 parameter" : "$(length(p)) parameters"
    names = join(("p$i" for i in 1:length(p)), ", ")
    arguments = isempty(p) ? "t, y" : "t, y, $names"
    throw(
        FieldError(
            "a JuliaField with $parameters is called with the time, the state and each parameter by itself, " *
                "which this function does not take: write it as ($arguments) -> dy, or (dy, $arguments) that writes dy"
        )
    )
end
