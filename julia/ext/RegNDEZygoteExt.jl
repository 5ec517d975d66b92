module RegNDEZygoteExt

using RegNDE: RegNDE
using Zygote: Buffer, pullback

function RegNDE.plain_vjp!(ybar, pbar, f, ct, t, y, p)
    _, back = pullback((x, q) -> slope(f, t, x, q), y, p)
    x, q = back(ct)
    x === nothing ? fill!(ybar, 0) : copyto!(ybar, x)
    for (total, part) in zip(pbar, something(q, ()))
        part === nothing || (total .+= part)
    end
    return nothing
end

slope(f, t, y, p) = f(t, y, p...)

"A buffer takes writes that Zygote follows, entry by entry or by broadcasting."
function slope(f::RegNDE.InPlace, t, y, p)
    dy = Buffer(y)
    f.f(dy, t, y, p...)
    return copy(dy)
end

end
