# A flag by which a caller that can not throw into this thread, Python's, asks a solve to stop.

"Where the flag lies (an Int32, not zero to stop), or null."
const STOP = Ref(Ptr{Int32}(0))

"Throws an `InterruptException` if the caller has asked for it; called at every step."
function stop_if_asked()
    asked = STOP[] != C_NULL && unsafe_load(STOP[]) != 0
    asked && throw(InterruptException())
    return nothing
end
