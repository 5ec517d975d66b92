# A solver that is used for one solve after another, with the same numbers as a fresh one. To make one takes longer than
# some solves do.

"A solver, and what it was behind `init`: the `flags` of its integrator and of that one's `control`."
struct Marked{S <: Solver, F, C}
    solver::S
    flags::F
    control::C
end

Marked(solver::Solver) =
    Marked(solver, plain_values(solver.integrator), plain_values(solver.integrator.controller_cache))

"""
    forward!(recording, kept, field; conditions) -> recording

Likewise with the [`Marked`](@ref) solver that `kept` refers to. It is made first if that is `nothing`; of later
recordings only state and tolerances may be others.
"""
function forward!(rec::Recording, kept::Ref, field::Field; conditions = nothing)
    fields = (field,)
    begin!(rec, fields) || return rec
    kept[] === nothing ? (kept[] = Marked(Solver(rec, fields))) : restart!(kept[], rec)
    return solve!(rec, kept[].solver, fields, conditions)
end

"Of methods whose integrators or recorders are not brought back to their start, none is kept."
forward!(rec::Recording{<:AbstractVector, <:Union{FixedStep, Implicit, Rosenbrock}}, ::Ref, field::Field; conditions = nothing) =
    forward!(rec, field; conditions)

"Brings the solver back to the start, with the state and the tolerances of another recording."
function restart!(marked::Marked, rec::Recording)
    (; recorder, integrator) = marked.solver
    # the tape may have the first stage of a step that was not accepted: it was the last one of the step before
    expect_first_stage!(recorder, rec.settings.keep === :stages && recorder.packed === nothing)
    (; reltol, abstol) = tolerances(rec.settings, rec.y0)
    (; opts, controller_cache) = integrator
    opts.reltol, opts.abstol, opts.dtmax = reltol, abstol, longest_first(rec)
    reinit!(integrator, rec.y0; reset_dt = false)
    set_plain_values!(integrator, marked.flags)
    set_plain_values!(controller_cache, marked.control)
    isnan(rec.settings.dt0) && auto_dt_reset!(integrator)
    return nothing
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
