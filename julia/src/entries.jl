# The functions of bridge.jl as C functions: Python calls them by their addresses. A general call of Julia from Python
# would have to be compiled first, in each process anew.

"Their results and arguments."
const ENTRIES = (
    :bridge_compile => (Nothing, (Int, String, String)),
    :bridge_free => (Nothing, (Int,)),
    :bridge_evaluate => (String, (String,)),
    :bridge_solve => (
        Bool, (
            Int, Int, Int, String, Float64, Float64, Float64, Float64, Float64, String, Int, Bool, Bool, String, Int, Int,
        ),
    ),
    :bridge_reason => (String, (Int, Int)),
    :bridge_records => (Nothing, (Int, Int)),
    :bridge_crossings => (Nothing, (Int, Int)),
    :bridge_pieces => (Nothing, (Int, Int, Int)),
    :bridge_interpolant => (String, (String,)),
    :bridge_backward => (Nothing, (Int, Int, Int, String)),
    :bridge_local_start => (Float64, (Int, Int)),
    :bridge_local => (Nothing, (Int, Int, Int, String, Float64, Float64, Float64, Float64, Float64, Float64, Int)),
    :bridge_local_backward => (Nothing, (Int, Int, Int, Float64, Float64, Bool)),
    :bridge_samples => (
        Bool, (Int, Int, Int, String, Float64, Float64, Float64, Float64, Float64, String, Int, Bool, String, Int),
    ),
    :bridge_sample_records => (Nothing, (Int, Int, Int)),
    :bridge_samples_backward => (Nothing, (Int, Int, Int)),
    :bridge_set_flags => (Nothing, (Int,)),
    :bridge_saved => (Int, ()),
)

"The letters that Python knows them by."
const LETTERS = Dict(Int => 'l', Float64 => 'd', Bool => 'b', String => 's', Nothing => 'n')

"The text of the last answer: Python copies it at once."
const TEXT = Ref("")

"Writes a result to the two integers at `out`; of a text its address and length."
answer!(out, x::Union{Int, Float64}) = unsafe_store!(Ptr{typeof(x)}(out), x)
answer!(out, x::Bool) = answer!(out, Int(x))
answer!(out, ::Nothing) = nothing

function answer!(out, text::String)
    TEXT[] = text
    unsafe_store!(out, Int(pointer(text)))
    unsafe_store!(out, sizeof(text), 2)
    return nothing
end

"""
Takes messages without waiting for their output: Julia writes it on the thread where it was started, which may be
outside Julia for long.
"""
const LOGGER = CoreLogging.SimpleLogger(Core.stderr)

"Calls `f` and writes its result, or the text of an error; whether there was none."
function answered!(out, f, arguments...)
    try
        answer!(out, CoreLogging.with_logger(() -> invokelatest(f, arguments...), LOGGER))
        return true
    catch exception
        text = explained(exception, catch_backtrace())
        answer!(out, text == "" ? sprint(showerror, exception, catch_backtrace()) : text)
        return false
    end
end

for (name, (_, types)) in ENTRIES
    given = [Symbol(:x, i) for i in eachindex(types)]
    c_types = [T === String ? Cstring : T for T in types]
    values = [T === String ? :(unsafe_string($x)) : x for (T, x) in zip(types, given)]
    @eval $(Symbol(:entry_, name))(out::Ptr{Int}, $(given...)) = answered!(out, $name, $(values...))
    @eval address(::Val{$(QuoteNode(name))}) = @cfunction($(Symbol(:entry_, name)), Bool, (Ptr{Int}, $(c_types...)))
end

"For each entry a line: its name, the letters of its result and its arguments, its address."
function entries()
    lines = map(collect(ENTRIES)) do (name, (result, types))
        letters = string(LETTERS[result], (LETTERS[T] for T in types)...)
        "$name $letters $(Int(address(Val(name))))"
    end
    return join(lines, '\n')
end
