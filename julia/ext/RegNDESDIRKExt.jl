module RegNDESDIRKExt

using OrdinaryDiffEqSDIRK: KenCarp4, TRBDF2
using RegNDE: RegNDE, Implicit, finite

function __init__()
    RegNDE.METHODS[:trbdf2] = Implicit(finite(TRBDF2), :trbdf2)
    RegNDE.METHODS[:kencarp4] = Implicit(finite(KenCarp4), :kencarp4)
    return nothing
end

end
