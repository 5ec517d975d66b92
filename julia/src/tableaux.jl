# Coefficients of the explicit Runge-Kutta methods. Sources:
#   tsit5   Ch. Tsitouras, Comput. Math. Appl. 62 (2011) 770-775, with its free interpolant
#   dp5     J. R. Dormand, P. J. Prince, J. Comput. Appl. Math. 6 (1980) 19-26; interpolant of
#           E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.6
#   bs3     P. Bogacki, L. F. Shampine, Appl. Math. Lett. 2 (1989) 321-325
#   vern*   J. H. Verner, Numer. Algorithms 53 (2010) 383-396: read from OrdinaryDiffEqVerner (verner.jl)

"""
    Tableau

An explicit Runge-Kutta method with stages k_i = f(t + c_i h, y + h sum_j a_ij k_j). The first
`stages` of them make the step; the `extra` ones after that serve the interpolant alone.

  - `b`: weights of the new state (equal to the last row of the step's `a` when `fsal`)
  - `btilde`: weights of the error, embedded minus main
  - `dense`: row j holds the coefficients of theta, theta^2, ... in stage j's weight of the interpolant
  - `pair`: the last two stages both lie at t + h, so that their quotient estimates the stiffness
"""
struct Tableau
    name::Symbol
    stages::Int
    extra::Int
    a::Matrix{Float64}
    c::Vector{Float64}
    b::Vector{Float64}
    btilde::Vector{Float64}
    dense::Matrix{Float64}
    fsal::Bool
    pair::Bool
    stability_size::Float64
end

"Total number of stages, the interpolant's included."
total(tableau::Tableau) = tableau.stages + tableau.extra

function lower(rows...)
    a = zeros(length(rows), length(rows))
    for (i, row) in enumerate(rows), (j, x) in enumerate(row)
        a[i, j] = x
    end
    return a
end

rows(list...) = permutedims(reduce(hcat, map(collect, list)))

"""
Cubic Hermite interpolant as weights of the stages (the first is the slope at the start, the last the
one at the end), plus theta^2 (1 - theta)^2 times `quartic`, the correction of dp5.
"""
function hermite(b, quartic = zeros(length(b)))
    weights = zeros(length(b), 4)
    for j in eachindex(b)
        weights[j, :] = [0.0, 3b[j], -2b[j], 0.0] + quartic[j] * [0.0, 1.0, -2.0, 1.0]
    end
    weights[1, :] += [1.0, -2.0, 1.0, 0.0]
    weights[end, :] += [0.0, -1.0, 1.0, 0.0]
    return weights
end

const TSIT5 = let
    a = lower(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (
            0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
            2.324710524099774,
        )
    )
    btilde = [
        -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629,
        0.5823571654525552, -0.45808210592918697, 1 / 66,
    ]
    dense = rows(
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5)
    )
    c = [0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0]
    Tableau(:tsit5, 7, 0, a, c, a[7, :], btilde, dense, true, true, 3.5068)
end

const DP5_TABLEAU = let
    last = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
    a = lower(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        last
    )
    btilde = [-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40]
    quartic = [
        -12715105075 / 11282082432, 0.0, 87487479700 / 32700410799, -10690763975 / 1880347072,
        701980252875 / 199316789632, -1453857185 / 822651844, 69997945 / 29380423,
    ]
    b = [last..., 0.0]
    c = [0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0]
    Tableau(:dp5, 7, 0, a, c, b, btilde, hermite(b, quartic), true, true, 3.3066)
end

const BS3_TABLEAU = let
    last = (2 / 9, 1 / 3, 4 / 9)
    a = lower((), (1 / 2,), (0.0, 3 / 4), last)
    b = [last..., 0.0]
    btilde = [5 / 72, -1 / 12, -1 / 9, 1 / 8]
    Tableau(:bs3, 4, 0, a, [0.0, 1 / 2, 3 / 4, 1.0], b, btilde, hermite(b), true, false, NaN)
end
