# The methods by name: which algorithm steps, which coefficients describe it.

abstract type Method end

"An explicit Runge-Kutta method: exact discrete gradients of trajectory, error and stiffness."
struct RungeKutta{A} <: Method
    algorithm::A
    tableau::Tableau
end

"""
Such a method whose type does not tell which one it is: all that is ours is compiled once for all of them, and
OrdinaryDiffEq's code for each.
"""
const Explicit = RungeKutta{Any}

"""
A Runge-Kutta method of fixed step size. No integrator of OrdinaryDiffEq makes its steps: it would form their ends by
adding sizes up, and evaluate the field at each for an interpolant.
"""
const FixedStep = RungeKutta{Nothing}

FixedStep(name::Symbol) = RungeKutta(nothing, Tableau(name))

"A stochastic Runge-Kutta method for diagonal noise; likewise."
struct StochasticRungeKutta{A} <: Method
    algorithm::A
    tableau::NoiseTableau
end

"""
    StochasticScheme(algorithm, scheme, code = nothing)

A stochastic method that is given by its evaluations; likewise, for diffusions that are matrices too. The integrator of
`algorithm` controls its steps. They are made by that integrator's code (`nothing`), by the out-of-place code of
StochasticDiffEq that has the constant cache `code`, or by `scheme` itself (`:own`).
"""
struct StochasticScheme{A, C} <: Method
    algorithm::A
    scheme::Scheme
    code::C
end

StochasticScheme(algorithm, name::Symbol, code = nothing) = StochasticScheme(algorithm, SCHEMES[name], code)

const StochasticMethod = Union{StochasticRungeKutta, StochasticScheme}

"""
    Rosenbrock(algorithm, tableau, explicit = nothing, mass = I)

A Rosenbrock method, or one that switches between it and the method `explicit`: likewise, for fields with tangents.
`mass` is a [`Mass`](@ref), or `I`.
"""
struct Rosenbrock{A, E <: Union{Nothing, Tableau}, W} <: Method
    algorithm::A
    tableau::RosenbrockTableau
    explicit::E
    mass::W
end

Rosenbrock(algorithm, name::Symbol, explicit = nothing) = Rosenbrock(algorithm, RosenbrockTableau(name), explicit, I)

"The method for M y' = f(t, y)."
with_mass(m::Method, mass) = mass isa Mass ? throw(ArgumentError("a mass matrix is for Rosenbrock methods")) : m
with_mass(m::Rosenbrock, mass) = Rosenbrock(m.algorithm, m.tableau, m.explicit, mass)

"An implicit method whose records are read back, not differentiated."
struct Implicit{A} <: Method
    algorithm::A
    name::Symbol
end

# Fields are type-erased, hence no dual numbers: without tangents Jacobians are finite differences.
finite(algorithm) = algorithm(autodiff = AutoFiniteDiff())

const METHODS = Dict{Symbol, Method}(
    :tsit5 => Explicit(Tsit5(), TSIT5),
    :dp5 => Explicit(DP5(), Tableau(:dp5)),
    :bs3 => Explicit(BS3(), Tableau(:bs3)),
    :heun => Explicit(Heun(), Tableau(:heun)),
    :vern6 => Explicit(Vern6(), verner(Vern6Tableau(Float64, Float64), 9, 3, true)),
    :vern7 => Explicit(Vern7(), Tableau(:vern7)),
    :vern8 => Explicit(Vern8(), verner(Vern8Tableau(Float64, Float64), 13, 8, false)),
    :vern9 => Explicit(
        Vern9(), verner(
            16, 10, false, Vern9Tableau(Float64, Float64), Vern9ExtraStages(Float64, Float64),
            Vern9InterpolationCoefficients(Float64)
        )
    ),
    :euler => FixedStep(:euler),
    :midpoint => FixedStep(:midpoint),
    :heun2 => FixedStep(:heun2),
    :heun3 => FixedStep(:heun3),
    :rk4 => FixedStep(:rk4),
    :rk38 => FixedStep(:rk38),
)

"The method of that (lower-case) name; an `ArgumentError` lists them all, and what brings others."
function method(name::Symbol)
    haskey(METHODS, name) && return METHODS[name]
    known = join(sort!(String.(collect(keys(METHODS)))), ", ")
    throw(
        ArgumentError(
            "no method $name; there are $known. `using OrdinaryDiffEqRosenbrock` brings rosenbrock23, rodas4, rodas5p and " *
                "autotsit5, `using OrdinaryDiffEqSDIRK` trbdf2 and kencarp4, `using DiffEqNoiseProcess, " *
                "StochasticDiffEqHighOrder, StochasticDiffEqLowOrder` those of SDEs"
        )
    )
end

"""
    controller((name, constants), algorithm)

The controller `"PI"`, `"I"` or `"PID"` of an algorithm. A constant that is NaN is the algorithm's own. PI: beta1,
beta2, qoldinit, gamma, qmin, qmax, qmax_first_step; I: the last four; PID: beta1, beta2, beta3, accept_safety.
"""
function controller((name, constants), algorithm)
    x = map(c -> isnan(c) ? nothing : c, constants)
    name == "PID" && return PIDController(Float64, algorithm; beta = (x[1], x[2], x[3]), accept_safety = x[4])
    bounds = NamedTuple{(:gamma, :qmin, :qmax, :qmax_first_step)}(x[(end - 3):end])
    name == "I" && return IController(Float64, algorithm; bounds...)
    return PIController(Float64, algorithm; beta1 = x[1], beta2 = x[2], qoldinit = x[3], bounds...)
end

"What the interpolant of a step is made of: this many arrays like the state, itself at the start and slopes."
piece_count(m::RungeKutta) = 1 + total(m.tableau)
piece_count(m::Rosenbrock) = 1 + (m.explicit === nothing ? m.tableau.stages : max(m.tableau.stages, total(m.explicit)))

"Whether the method has an error estimate and thus adapts its step."
adapts(m::StochasticRungeKutta) = m.tableau.adaptive
adapts(m::StochasticScheme) = estimates_error(m.scheme)
adapts(::FixedStep) = false
adapts(::Method) = true

