module RegNDEZygoteExt

using RegNDE: RegNDE
using Zygote: pullback

function RegNDE.plain_vjp!(ybar, pbar, f, ct, t, y, p)
    _, back = pullback((x, q) -> f(t, x, q...), y, p)
    x, q = back(ct)
    x === nothing ? fill!(ybar, 0) : copyto!(ybar, x)
    for (total, part) in zip(pbar, something(q, ()))
        part === nothing || (total .+= part)
    end
    return nothing
end

end
