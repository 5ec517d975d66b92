# A flag by which a caller that can not throw into this thread, Python's, asks a solve to stop.

"Where the flag lies (an Int32, not zero to stop), or null."
const STOP_FLAG = Ref(Ptr{Int32}(0))

"Throws an `InterruptException` if the flag is set; called at every step."
function check_stop_flag()
    set = STOP_FLAG[] != C_NULL && unsafe_load(STOP_FLAG[]) != 0
    set && throw(InterruptException())
    return nothing
end
