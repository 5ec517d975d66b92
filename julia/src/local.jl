# The local record (A. Pal, A. Edelman, C. Rackauckas, ICML 2023): one step taken apart from the solve.

"""
    LocalStep

One step from (t, y): its `error` and `stiffness`, and what their reverse needs.
"""
struct LocalStep{V}
    tableau::Tableau
    settings::Settings
    t::Float64
    h::Float64
    t1::Float64
    stages::Stages{V}
    error::Float64
    stiffness::Float64
end

"""
    local_step(method, settings, field, y, t, t_end, h = NaN) -> LocalStep

One step of size `h`, cut at `t_end`; with NaN the size is the first-step heuristic's at (t, y). An
implicit method's local step is made by tsit5.
"""
function local_step(m::Union{RungeKutta, Implicit}, settings::Settings, field::Field, y, t, t_end, h = NaN)
    tableau = tableau_of(m)
    isnan(h) && (h = initial_size(m, settings, field, y, t, t_end))
    h = copysign(min(abs(h), abs(t_end - t)), t_end - t)
    t1 = abs(h) == abs(t_end - t) ? t_end : t + h
    stages = Stages(tableau, y)
    copyto!(stages.g[1], y)
    evaluate!(stages.k[1], field, t, y)
    take_step!(stages, tableau, field, t, h, t1)
    error = error_estimate!(stages, tableau, h, settings.rtol, settings.atol)
    stiffness = tableau.pair ? stiffness_estimate(stages, tableau) : NaN
    return LocalStep(tableau, settings, t, h, t1, stages, error, stiffness)
end

"The size that a fresh solve from (t, y) would begin with."
function initial_size(m, settings::Settings, field, y, t, t_end)
    algorithm = m isa Implicit ? Tsit5() : m.algorithm
    problem = ODEProblem(ODEFunction{true, FullSpecialize}(RightHandSide(field)), y, (t, t_end))
    T = real(eltype(y))
    fresh = init(
        problem, algorithm; reltol = T(settings.rtol), abstol = T(settings.atol), save_everystep = false,
        dense = false, verbose = SILENT
    )
    # the slope of the FSAL stage is evaluated again by the step itself
    tableau_of(m).fsal && (field.calls[] -= 1)
    return fresh.dt
end

"""
    reverse!(ybar, step::LocalStep, field, Ebar, Sbar; freeze = false) -> ybar

Writes the cotangent of the state that the step started from; parameter cotangents are added. With
`freeze` the first stage is a constant.
"""
function reverse!(ybar, step::LocalStep, field::Field, Ebar, Sbar; freeze = false)
    (; tableau, settings, t, h, t1, stages) = step
    rev = Reverse(tableau, ybar)
    reverse_step!(
        rev, stages, tableau, field, t, h, t1, settings.rtol, settings.atol; Ebar, Sbar, freeze
    )
    if rev.carry_live[]
        vjp!(rev.x, field, rev.carry, t, stages.g[1])
        add!(rev.lam, one(eltype(ybar)), rev.x)
    end
    return copyto!(ybar, rev.lam)
end
