# The local record (A. Pal, A. Edelman, C. Rackauckas, ICML 2023): one step taken apart from the solve.

"One step from (t, y): its `error` and `stiffness` (NaN where the method has none), and what their reverse needs."
struct LocalStep{S, M, O <: Settings}
    tableau::M
    settings::O
    step::S
    error::Float64
    stiffness::Float64
end

"""
    local_step(method, settings, fields, y, t, t_end, h = NaN; noise) -> LocalStep

One step of size `h`, cut at `t_end`, in the settings' first segment if they have one; with NaN the size is
the first-step heuristic's at (t, y). The local step of an implicit method that is not differentiated is made by tsit5.
An SDE's takes its increments from the path `noise`, a function like a [`PathNoise`](@ref)'s source.
"""
function local_step(
        m::Union{RungeKutta, Implicit, Rosenbrock}, settings::Settings, (field,), y, t, t_end, h = NaN; noise = nothing
    )
    if !(m isa RungeKutta || (m isa Rosenbrock && field.tangents !== nothing))
        return local_step(METHODS[:tsit5], settings, (field,), y, t, t_end, h)
    end
    tableau = m.tableau
    confine!((field,), settings)
    h, t1 = local_size(isnan(h) ? initial_size(m, settings, field, y, t, t_end) : h, t, t_end)
    step = started(m, field, y, t)
    take_step!(step, tableau, field, t, h, t1)
    return LocalStep(tableau, settings, step, estimates!(step, tableau, settings.rtol, settings.atol)...)
end

"A step that is ready to be taken from (t, y)."
function started(m::RungeKutta, field, y, t)
    step = keep_residuals!(Step(m.tableau, y), m.tableau, field)
    copyto!(step.arguments[1], y)
    evaluate!(step.k[1], field, t, y, step.residuals[1])
    return step
end

function started(m::Rosenbrock, field, y, t)
    step = RosenbrockStep(m.tableau, y, m.mass)
    copyto!(step.arguments[1], y)
    return step
end

function local_step(m::StochasticMethod, settings::Settings, (drift, diffusion), y, t, t_end, h = NaN; noise)
    (; rtol, atol) = settings
    confine!((drift, diffusion), settings)
    h, t1 = local_size(isnan(h) ? initial_size(m, settings, drift, diffusion, y, t, t_end) : h, t, t_end)
    step, formula, _ = stochastic_step(m, y, drift, diffusion)
    dW = fill!(similar(y, noise_length(diffusion, length(y))), 0)
    dZ = fill!(similar(dW), 0)
    noise(dW, dZ, t, t1)
    recall!(step, taped(m, y, (; dW, dZ)), formula, drift, diffusion, t, h, t1)
    return LocalStep(formula, settings, step, stochastic_estimates!(step, formula, rtol, atol)...)
end

stochastic_estimates!(step::SDEStep, tableau, rtol, atol) = sde_estimates!(step, tableau, rtol, atol)
stochastic_estimates!(step::SchemeStep, scheme, rtol, atol) = scheme_estimates!(step, scheme, rtol, atol)

release!(here::LocalStep) = release!(here.step)

"Bounds the fields' times by the first segment."
confine!(fields::Tuple, settings::Settings) =
    isempty(settings.segments) || foreach(field -> confine!(field, settings.segments[1]), fields)

"The step's size, cut at the end time, and its end."
function local_size(h, t, t_end)
    h = copysign(min(abs(h), abs(t_end - t)), t_end - t)
    return h, abs(h) == abs(t_end - t) ? t_end : t + h
end

"The size that a fresh solve from (t, y) would begin with."
function initial_size(m, settings::Settings, field, y, t, t_end)
    derivatives = m isa Rosenbrock ? Derivatives(field, y) : nothing
    problem = ODEProblem(functions(RightHandSide(field), derivatives), y, (t, t_end))
    dtmax = min(settings.dt_max, abs(t_end - t))
    integrator = init(problem, m.algorithm; tolerances(settings, y)..., dtmax)
    # a fresh solve evaluates an FSAL method's first stage; here the step itself does
    m.tableau.fsal && (field.calls[] -= 1)
    return integrator.dt
end

"With a mass matrix, by the slopes M^-1 f; a small size where algebraic equations leave some of them unknown."
function initial_size(m::Rosenbrock{<:Any, <:Any, <:Mass}, settings::Settings, field, y, t, t_end)
    (; mass) = m
    mass.singular && return copysign(min(SMALL_START, settings.dt_max, abs(t_end - t)), t_end - t)
    return initial_size(with_mass(m, I), settings, slopes(field, mass), y, t, t_end)
end

const SMALL_START = 1.0e-6  # as OrdinaryDiffEq's

function initial_size(m::StochasticMethod, settings::Settings, drift, diffusion, y, t, t_end)
    f = SDEFunction{true, FullSpecialize}(RightHandSide(drift), RightHandSide(diffusion))
    prototype = similar(y, noise_length(diffusion, length(y)))
    still = PathNoise((w, z, _, _) -> (fill!(w, 0); fill!(z, 0); nothing), t, t_end, prototype)
    problem = SDEProblem(f, y, (t, t_end); noise = still, noise_rate_prototype = noise_prototype(diffusion, y))
    dtmax = min(settings.dt_max, abs(t_end - t))
    return init(problem, m.algorithm; tolerances(settings, y)..., dtmax).dt
end

"""
    reverse!(ybar, local_step, fields, Ebar, Sbar; freeze = false) -> ybar

Writes the cotangent of the state that the step started from; parameter cotangents are added. With
`freeze` the first stage is a constant (a stochastic method has none that is carried over).
"""
function reverse!(ybar, here::LocalStep{<:Union{Step, RosenbrockStep}}, (field,), Ebar, Sbar; freeze = false)
    (; tableau, settings, step) = here
    confine!((field,), settings)
    rev = Reverse(tableau, ybar)
    reverse_step!(rev, step, tableau, field, settings.rtol, settings.atol; Ebar, Sbar, freeze)
    return copyto!(ybar, reverse_first_stage!(rev, field, step).lam)
end

function reverse!(
        ybar, here::LocalStep{<:Union{SDEStep, SchemeStep}}, (drift, diffusion), Ebar, Sbar; freeze = false
    )
    (; tableau, settings, step) = here
    confine!((drift, diffusion), settings)
    rev = step isa SDEStep ? SDEReverse(tableau, ybar) : SchemeReverse(step)
    reverse_step!(rev, step, tableau, drift, diffusion, settings.rtol, settings.atol; Ebar, Sbar)
    return copyto!(ybar, state_cotangent(rev))
end
