# Operators of torch.linalg for exported fields. Arrays are torch's reversed: the slice of a matrix A is its
# transpose, and X A = B reads Aᵀ Xᵀ = Bᵀ. Further dimensions are batches.

_slices(x) = reshape(x, size(x, 1), size(x, 2), :)

function _each!(f, target, a)
    to, from = _slices(target), _slices(a)
    for k in axes(from, 3)
        to[:, :, k] = f(from[:, :, k])
    end
    return target
end

"A X = B (`left`) or X A = B; with `adjoint` of the adjoint matrix."
function linear_solve!(x, a, b, left, adjoint)
    to, matrices, right = _slices(x), _slices(a), _slices(b)
    for k in axes(matrices, 3)
        transposed = matrices[:, :, k]
        matrix = lu!(adjoint ? Matrix(transposed') : transposed)
        to[:, :, k] = left ? right[:, :, k] / matrix : matrix \ right[:, :, k]
    end
    return x
end

function triangular_solve!(x, a, b, upper, left, unit)
    to, matrices, right = _slices(x), _slices(a), _slices(b)
    for k in axes(matrices, 3)
        transposed = matrices[:, :, k] # of an upper triangular matrix a lower one
        triangle = if upper
            unit ? UnitLowerTriangular(transposed) : LowerTriangular(transposed)
        else
            unit ? UnitUpperTriangular(transposed) : UpperTriangular(transposed)
        end
        to[:, :, k] = left ? right[:, :, k] / triangle : triangle \ right[:, :, k]
    end
    return x
end

inverse!(target, a) = _each!(inv, target, a)
matrix_exp!(target, a) = _each!(exp, target, a)

"A = L Lᴴ, or A = Uᴴ U with `upper`; torch reads the triangle that it writes."
cholesky_factor!(target, a, upper) = _each!(target, a) do transposed
    upper ? Matrix(cholesky!(Hermitian(transposed, :L)).L) : Matrix(cholesky!(Hermitian(transposed, :U)).U)
end

_hermitian(transposed, lower) = Hermitian(transposed, lower ? :U : :L)

"Eigenvectors are the columns of torch's matrix."
symmetric_vectors!(target, a, lower) =
    _each!(transposed -> eigen!(_hermitian(transposed, lower)).vectors', target, a)

function symmetric_values!(target, a, lower)
    to, from = reshape(target, size(target, 1), :), _slices(a)
    for k in axes(from, 3)
        to[:, k] = eigvals!(_hermitian(from[:, :, k], lower))
    end
    return target
end

function _number!(f, target, a)
    from = _slices(a)
    for k in axes(from, 3)
        target[k] = f(from[:, :, k])
    end
    return target
end

determinant!(target, a) = _number!(det, target, a)
determinant_sign!(target, a) = _number!(x -> logabsdet(x)[2], target, a)
log_determinant!(target, a) = _number!(x -> logabsdet(x)[1], target, a)
