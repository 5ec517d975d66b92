module RegNDEZygoteExt

using RegNDE: RegNDE
using Zygote: pullback

function RegNDE.plain_vjp(f, ct, t, y, p)
    _, back = pullback((x, q) -> f(t, x, q...), y, p)
    ybar, pbar = back(ct)
    return ybar, something(pbar, map(_ -> nothing, p))
end

end
