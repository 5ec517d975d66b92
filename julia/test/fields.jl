# Fields with hand-written vector-Jacobian products, for the tests.

"u' = W2 tanh(W1 u^3 + b1) + b2 + t b2: time-dependent, four parameter arrays, any batch."
module Net

using LinearAlgebra: mul!
using RegNDE: Dynamics, WithResiduals, WithTangents, fast_tanh

function value!(dy, t, y, p, _)
    W1, b1, W2, b2 = p
    dy .= W2 * fast_tanh.(W1 * (y .^ 3) .+ b1) .+ b2 .+ t .* b2
    return nothing
end

function vjp!(ybar, pbar, ct, t, y, p, _)
    W1, b1, W2, _ = p
    x = y .^ 3
    z = fast_tanh.(W1 * x .+ b1)
    zbar = (W2' * ct) .* (1 .- z .^ 2)
    mul!(pbar[1], zbar, x', true, true)
    pbar[2] .+= vec(sum(zbar; dims = 2))
    mul!(pbar[3], ct, z', true, true)
    pbar[4] .+= (1 + t) .* vec(sum(ct; dims = 2))
    ybar .= (W1' * zbar) .* 3 .* y .^ 2
    return nothing
end

function jvp!(dy, tdot, ydot, t, y, p, _)
    W1, b1, W2, b2 = p
    z = fast_tanh.(W1 * (y .^ 3) .+ b1)
    dy .= W2 * ((1 .- z .^ 2) .* (W1 * (3 .* y .^ 2 .* ydot))) .+ tdot .* b2
    return nothing
end

function jvp_vjp!(ybar, pbar, ct, tdot, ydot, t, y, p, _)
    W1, b1, W2, _ = p
    x, xdot = y .^ 3, 3 .* y .^ 2 .* ydot
    z, adot = fast_tanh.(W1 * x .+ b1), W1 * xdot
    zdotbar = W2' * ct
    adotbar = (1 .- z .^ 2) .* zdotbar
    abar = -2 .* z .* adotbar .* adot
    pbar[1] .+= adotbar * xdot' .+ abar * x'
    pbar[2] .+= vec(sum(abar; dims = 2))
    pbar[3] .+= ct * ((1 .- z .^ 2) .* adot)'
    pbar[4] .+= tdot .* vec(sum(ct; dims = 2))
    ybar .= (W1' * abar) .* 3 .* y .^ 2 .+ (W1' * adotbar) .* 6 .* y .* ydot
    return nothing
end

parameters(rng, dim, hidden, T = Float64) =
    (randn(rng, T, hidden, dim) ./ 2, randn(rng, T, hidden) ./ 5, randn(rng, T, dim, hidden) ./ T(sqrt(hidden)), randn(rng, T, dim) ./ 5)

dynamics(p) = Dynamics(value!, vjp!, p, nothing)

"With what an implicit method's gradient needs."
with_tangents(p) = Dynamics(value!, vjp!, p, nothing, nothing, WithTangents(jvp!, jvp_vjp!))

function keep!(dy, t, y, p, _, residuals)
    W1, b1, W2, b2 = p
    residuals[1] .= fast_tanh.(W1 * (y .^ 3) .+ b1)
    dy .= W2 * residuals[1] .+ b2 .+ t .* b2
    return nothing
end

function back!(ybar, pbar, ct, t, y, p, _, residuals)
    W1, _, W2, _ = p
    zbar = (W2' * ct) .* (1 .- residuals[1] .^ 2)
    mul!(pbar[1], zbar, (y .^ 3)', true, true)
    pbar[2] .+= vec(sum(zbar; dims = 2))
    mul!(pbar[3], ct, residuals[1]', true, true)
    pbar[4] .+= (1 + t) .* vec(sum(ct; dims = 2))
    ybar .= (W1' * zbar) .* 3 .* y .^ 2
    residuals[1] .= NaN # whoever reads it again is seen
    return nothing
end

"The same field, whose hidden layer the reverse reads instead of computing it again."
function with_residuals(p, y)
    sizes = ((size(p[1], 1), size(y, 2)),)
    return Dynamics(value!, (args...) -> error("no residuals"), p, nothing, WithResiduals(keep!, back!, sizes, y))
end

end

"Diagonal noise of size p1 tanh(u) + p2 (state-dependent) or p2 (1 + t) (additive)."
module Noise

using RegNDE: Dynamics

function value!(dy, t, y, p, _)
    dy .= p[1][1] .* tanh.(y) .+ p[2][1]
    return nothing
end

function vjp!(ybar, pbar, ct, t, y, p, _)
    pbar[1] .+= sum(ct .* tanh.(y))
    pbar[2] .+= sum(ct)
    ybar .= p[1][1] .* ct .* (1 .- tanh.(y) .^ 2)
    return nothing
end

function additive!(dy, t, y, p, _)
    dy .= p[1][1] * (1 + t)
    return nothing
end

function additive_vjp!(ybar, pbar, ct, t, y, p, _)
    pbar[1] .+= (1 + t) * sum(ct)
    ybar .= 0
    return nothing
end

function matrix!(dy, t, y, p, _)
    (A, b), (d, samples) = p, size(y)
    others = view(y, d:-1:1, :)
    dy .= A .* tanh.(reshape(y, 1, d, samples)) .+ b .* reshape(others, 1, d, samples) .+ t / 5
    return nothing
end

function matrix_vjp!(ybar, pbar, ct, t, y, p, _)
    (A, b), (d, samples) = p, size(y)
    z, others = tanh.(reshape(y, 1, d, samples)), reshape(y[d:-1:1, :], 1, d, samples)
    pbar[1] .+= sum(ct .* z; dims = 3)[:, :, 1]
    pbar[2] .+= vec(sum(ct .* others; dims = (2, 3)))
    ybar .= sum(ct .* A; dims = 1)[1, :, :] .* (1 .- z[1, :, :] .^ 2)
    ybar .+= sum(ct .* b; dims = 1)[1, d:-1:1, :]
    return nothing
end

function additive_matrix!(dy, t, y, p, _)
    dy .= p[1] .* (1 + t)
    return nothing
end

function additive_matrix_vjp!(ybar, pbar, ct, t, y, p, _)
    pbar[1] .+= (1 + t) .* sum(ct; dims = 3)[:, :, 1]
    ybar .= 0
    return nothing
end

multiplicative() = Dynamics(value!, vjp!, ([0.3], [0.1]), nothing)
additive() = Dynamics(additive!, additive_vjp!, ([0.2],), nothing)
"Matrices of two rows and three columns."
matrix() = Dynamics(matrix!, matrix_vjp!, ([0.3 0.1; -0.2 0.1; 0.1 0.3], [0.1, 0.2, -0.1]), nothing)
additive_matrix() = Dynamics(additive_matrix!, additive_matrix_vjp!, ([0.3 0.1; -0.2 0.1; 0.1 0.3],), nothing)

end
