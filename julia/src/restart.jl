# A solver that is used for one solve after another, with the same numbers as a fresh one. To make one takes longer than
# some solves do.

"""
    forward!(recording, kept, field; conditions) -> recording

Likewise with the solver that `kept` refers to. It is made first if that is `nothing`; of later recordings only state and
tolerances may be others.
"""
function forward!(rec::Recording, kept::Ref, field::Field; conditions = nothing)
    fields = (field,)
    begin!(rec, fields) || return rec
    kept[] = kept[] === nothing ? Solver(rec, fields) : restart!(kept[], rec, fields)
    return solve!(rec, kept[], fields, conditions)
end

forward!(rec::Recording{<:AbstractVector, <:FixedStep}, ::Ref, field::Field; conditions = nothing) =
    forward!(rec, field; conditions)

"Makes a solver ready for another recording: here a new one."
restart!(::Solver, rec::Recording, fields) = Solver(rec, fields)

function restart!(solver::Solver{<:StageRecorder}, rec::Recording, fields)
    (; recorder, integrator, flags, control) = solver
    # the tape may have the first stage of a step that was not accepted: it was the last one of the step before
    expect_first_stage!(recorder, rec.settings.keep === :stages)
    (; reltol, abstol) = tolerances(rec.settings, rec.y0)
    (; opts, controller_cache) = integrator
    opts.reltol, opts.abstol, opts.dtmax = reltol, abstol, longest_first(rec)
    reinit!(integrator, rec.y0; reset_dt = false)
    set_plain_values!(integrator, flags)
    set_plain_values!(controller_cache, control)
    isnan(rec.settings.dt0) && auto_dt_reset!(integrator)
    return solver
end

"Names of the fields of a mutable struct that hold numbers and flags, not what lies elsewhere in memory."
plain_names(::Type{T}) where {T} =
    filter(name -> isbitstype(fieldtype(T, name)) && !isconst(T, name), fieldnames(T))

"The values of these fields, by name."
@generated function plain_values(x::T) where {T}
    names = plain_names(T)
    values = (:(getfield(x, $(QuoteNode(name)))) for name in names)
    return :(NamedTuple{$names}(($(values...),)))
end

@generated function set_plain_values!(x, values::NamedTuple{names}) where {names}
    return Expr(:block, (:(setfield!(x, $(QuoteNode(name)), values.$name)) for name in names)..., :(return x))
end
