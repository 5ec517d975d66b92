# How a caller that can not throw into this thread, Python, stops a solve; and how its signals are served meanwhile.

"""
Where the caller's integers lie, or null: not zero to stop; not zero to run handlers of signals; the addresses of
Python's `PyGILState_Ensure`, `PyErr_CheckSignals`, `PyErr_Fetch` and `PyGILState_Release`; where to keep an exception.
"""
const FLAGS = Ref(Ptr{Int}(0))

const SIGNALS_EVERY = 50_000_000  # nanoseconds: Python's lock may have to be waited for
const SIGNALS_SERVED = Ref(UInt64(0))

"Throws an `InterruptException` if the caller asks for it, or the handler of a signal has thrown; called at every step."
function check_stop_flag()
    flags = FLAGS[]
    flags == C_NULL && return nothing
    unsafe_load(flags) == 0 || throw(InterruptException())
    unsafe_load(flags, 2) == 0 || serve_signals(flags)
    return nothing
end

function serve_signals(flags)
    now = time_ns()
    now < SIGNALS_SERVED[] + SIGNALS_EVERY && return nothing
    SIGNALS_SERVED[] = now
    ensure, check, fetch, release = (Ptr{Cvoid}(unsafe_load(flags, i)) for i in 3:6)
    state = ccall(ensure, Cint, ())
    raised = ccall(check, Cint, ()) != 0
    raised && ccall(fetch, Cvoid, (Ptr{Int}, Ptr{Int}, Ptr{Int}), flags + 48, flags + 56, flags + 64)
    ccall(release, Cvoid, (Cint,), state)
    raised && throw(InterruptException())
    return nothing
end
