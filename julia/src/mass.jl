# The mass matrix of M y' = f(t, y), singular ones included. Its Python twin is python/regnde/_mass.py.

"""
    Mass(matrix)

A constant matrix M and its factors. It is `singular` where some of the equations are algebraic.
"""
struct Mass{T, F}
    matrix::Matrix{T}
    factors::F
    singular::Bool
end

function Mass(matrix::Matrix{T}) where {T}
    singular = rank(matrix; rtol = 1000 * eps(T)) < size(matrix, 1)
    return Mass(matrix, lu(matrix; check = false), singular)
end

"The matrix itself, or `I`."
matrix_of(::UniformScaling) = I
matrix_of(mass::Mass) = mass.matrix

"M^-1 J, the derivative of y' by the state; `nothing` where there are algebraic equations."
solved(::UniformScaling, jacobian) = jacobian
solved(mass::Mass, jacobian) = mass.singular ? nothing : mass.factors \ jacobian

"Adds `M * sum(h * weights[j] * terms[j])` over the first `count` terms to `out`, or that with the transpose of M."
add_coupled!(out, ::UniformScaling, weights, terms, h, count, scratch; transposed = false) =
    accumulate!(out, weights, terms, h, count)

function add_coupled!(out, mass::Mass, weights, terms, h, count, scratch; transposed = false)
    weighted!(scratch, terms, weights, h, count)
    return mul!(out, transposed ? mass.matrix' : mass.matrix, scratch, true, true)
end

"The field M^-1 f, which shares the field's counter."
function slopes(field::Field{V, T}, mass::Mass) where {V, T}
    value(dy, y, t) = (field.value(dy, y, t); ldiv!(mass.factors, dy); nothing)
    keep(dy, y, t, given) = (field.keep(dy, y, t, given); ldiv!(mass.factors, dy); nothing)
    (; vjp, back, residuals, tangents, calls, within, columns, rows, sizes, given) = field
    return Field{V, T}(value, keep, vjp, back, residuals, tangents, calls, within, columns, rows, sizes, given)
end
