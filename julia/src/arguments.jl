# How arguments cross from Python: a list of 64-bit integers that says where its arrays lie and what they are. Python writes
# it (`arguments.py`), Julia reads and writes the arrays in Python's memory.

const ELTYPES = (Float32, Float64, Int64, Int32, Bool, UInt8, ComplexF32, ComplexF64)

"Reads Python's argument buffer, a list of 64-bit integers, from the front."
mutable struct Reader
    const integers::Vector{Int}
    position::Int
end

Reader(address::Int, count::Int) = Reader(unsafe_wrap(Array, Ptr{Int}(address), count), 0)
integer(r::Reader) = r.integers[r.position += 1]

"""
An array in Python's memory: element type, address, dimensions (reversed). The address -1 is `nothing`;
an empty tensor has none. In place of the element type 0 says that a DLPack structure follows.
"""
function array(r::Reader)
    kind, address = integer(r), integer(r)
    kind == 0 && return dlpack_array(Ptr{Cvoid}(address))
    # the types of the most arrays are told to the compiler
    kind == 2 && return array(r, Float64, address)
    kind == 1 && return array(r, Float32, address)
    return array(r, ELTYPES[kind], address)
end

function array(r::Reader, ::Type{T}, address) where {T}
    n = integer(r)
    address == -1 && return nothing
    n == 1 && return array(T, address, (integer(r),))
    n == 2 && return array(T, address, (integer(r), integer(r)))
    return array(T, address, ntuple(_ -> integer(r), n))
end

array(::Type{T}, address::Int, dims::Dims) where {T} =
    address == 0 ? Array{T}(undef, dims) : unsafe_wrap(Array, Ptr{T}(address), dims)

arrays(r::Reader) = ntuple(_ -> array(r), integer(r))

"""
    dlpack_array(address) -> array

The array that a `DLManagedTensor` describes, in its own memory and on its own device, dimensions
reversed. Python holds the structure and frees it after the call. The DLPack extension has the method.
"""
function dlpack_array end

"Makes the device of that kind and number the one that new arrays lie on."
use_device(_, _) = nothing

"Waits until what was started on the array's device is done: Python's library has another queue there."
synchronize(_) = nothing

"Those of the settings that are in the argument buffer."
function read_settings(r::Reader, controller_name, rtol, atol)
    (; rtol, atol) = tolerances_of(r, rtol, atol)
    segments, constants, grid = segments_of(r), doubles(r), doubles(r)
    own = constants === nothing ? nothing : Base.Fix1(controller, (controller_name, copy(constants)))
    return (; rtol, atol, segments, controller = own, grid = grid === nothing ? Float64[] : copy(grid))
end

"An array of one dimension in double precision, or `nothing`."
doubles(r::Reader) = array(r)::Union{Nothing, Vector{Float64}}

"Tolerances, those of each entry if they are given; Python's memory is not kept."
function tolerances_of(r::Reader, rtol, atol)
    rtols, atols = array(r), array(r)
    return (;
        rtol = rtols === nothing ? rtol : copy(vec(rtols)), atol = atols === nothing ? atol : copy(vec(atols)),
    )
end

function mass_of(r::Reader)
    matrix = array(r)
    return matrix === nothing ? I : Mass(copy(matrix))
end

function segments_of(r::Reader)
    table = array(r)
    return table === nothing ? Segment[] : [Segment(column...) for column in eachcol(table)]
end

function read_fields(r::Reader)
    codes, parameters, columns = Code[], Tuple[], Int[]
    for _ in 1:integer(r)
        push!(codes, CODES[integer(r)])
        push!(columns, integer(r))
        push!(parameters, arrays(r))
    end
    return codes, parameters, columns
end

"The conditions of events: their codes and parameters, and what is looked for."
function read_conditions(r::Reader)
    codes, parameters = read_fields(r)
    kinds = array(r)
    kinds === nothing && return (; codes, parameters, directions = Int[], terminal = Bool[])
    return (; codes, parameters, directions = Int.(kinds[1, :]), terminal = kinds[2, :] .== 1)
end
