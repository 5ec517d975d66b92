# Entrywise expressions in which some arrays are stretched, for arrays in the processor's memory. Base's broadcast asks
# at every entry, and in every dimension, whether an array is stretched there, and does not vectorise.

"An array of size 1 in its first dimension, among others that are longer there."
struct Fixed{A}
    array::A
end

"""
    @rows (a, b) target = expression

`@. target = expression` (or `+=`, `-=`) whose arrays `a` and `b`, and no others, are stretched in the first dimension.
"""
macro rows(fixed, assignment)
    (target, value), short = assignment.args, fixed isa Symbol ? (fixed,) : fixed.args
    names = unique!(operands!(Symbol[], value))
    if assignment.head !== :(=)
        value = Expr(:call, assignment.head === :(+=) ? :+ : :-, target, value)
        target in names || push!(names, target)
    end
    arrays = [name in short ? :($Fixed($name)) : name for name in names]
    return esc(:($rows!(($(names...),) -> $value, $target, $(arrays...))))
end

"The names in an expression, those of functions left out."
operands!(names, expression) = expression isa Symbol ? push!(names, expression) : names

function operands!(names, expression::Expr)
    foreach(x -> operands!(names, x), expression.head === :call ? expression.args[2:end] : expression.args)
    return names
end

"Sets each entry of `out` to `f` of the entries of the operands there."
rows!(f::F, out, operands...) where {F} = out .= f.(map(unfixed, operands)...)

unfixed(x) = x
unfixed(x::Fixed) = x.array

function rows!(f::F, out::Union{Array, SubArray{<:Any, <:Any, <:Array}}, operands::Vararg{Any, N}) where {F, N}
    for place in CartesianIndices(Base.tail(axes(out)))
        row(f, out, place, map(x -> at(x, place), operands))
    end
    return out
end

@inline function row(f::F, out, place, entries) where {F}
    @simd ivdep for i in axes(out, 1)
        @inbounds out[i, place] = f(map(x -> entry(x, i), entries)...)
    end
    return nothing
end

"A row of an array, along its first dimension."
struct Row{A, I}
    array::A
    place::I
end

at(x::Number, _) = x
at(x::AbstractArray, place) = Row(x, within(x, place))
at(x::AbstractArray{<:Any, 0}, _) = x[]
at(x::Fixed, place) = x.array[1, within(x.array, place)]
at(x::Fixed{<:AbstractArray{<:Any, 0}}, _) = x.array[]

"The place in the dimensions after the first that stands for `place`."
@inline within(x::AbstractArray{<:Any, N}, place) where {N} =
    CartesianIndex(ntuple(d -> size(x, d + 1) == 1 ? 1 : place[d], Val(N - 1)))

@inline entry(x::Number, _) = x
@inline entry(x::Row, i) = @inbounds x.array[i, x.place]

"`maximum!(out, x)`, several times faster where the first dimension alone is reduced."
function largest!(out, x)
    rows = size(out, 1) == 1 && ndims(out) == ndims(x) && Base.tail(size(out)) == Base.tail(size(x))
    return rows ? largest_of_rows!(out, x) : maximum!(out, x)
end

largest_of_rows!(out, x) = maximum!(out, x)

function largest_of_rows!(out::Array{T}, x::Array{T}) where {T <: Union{Float32, Float64}}
    for place in CartesianIndices(Base.tail(axes(x)))
        found, undefined = T(-Inf), false
        @simd for i in axes(x, 1)
            value = @inbounds x[i, place]
            found = ifelse(value > found, value, found)
            undefined |= isnan(value)
        end
        @inbounds out[1, place] = undefined ? T(NaN) : found
    end
    return out
end
