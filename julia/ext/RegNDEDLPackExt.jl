module RegNDEDLPackExt

using DLPack: DLManagedTensor, DLManager, device_type, dldevice, jlarray_type
using RegNDE: RegNDE

function RegNDE.dlpack_array(address::Ptr{Cvoid})
    tensor = unsafe_load(Ptr{DLManagedTensor}(address)) # a copy without a finalizer: Python frees it
    kind = Val(device_type(tensor))
    RegNDE.use_device(kind, dldevice(tensor).device_id)
    return wrapped(jlarray_type(kind), DLManager(tensor))
end

# DLPack's sizes are torch's. An array of strides 1, 1 would be in either order: reversed in any case.
function wrapped(::Type{A}, tensor::DLManager{T, N}) where {A, T, N}
    sizes = N == 0 ? () : unsafe_load(Ptr{NTuple{N, Int64}}(tensor.manager.dl_tensor.shape))
    any(iszero, sizes) && return A{T, N}(undef, reverse(sizes))
    return reshape(unsafe_wrap(A, tensor), reverse(sizes))
end

end
