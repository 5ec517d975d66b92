# Convolutions of images in the processor's memory: columns of patches, and one product of matrices. NNlib's own copies the
# patches entry by entry, and takes two to three times as long. It has all other cases.
#
# An image is first copied into a frame of zeros, in which every column of patches is one piece of memory: the rows of the
# output follow each other at the frame's width. What lies between them is no pixel: zero, or never read.

"Whether these are plain images, in arrays of their own, without groups."
plain_images(geometry, ::Array{T, 4}, ::Array{T, 4}, ::Array{T, 4}) where {T <: Union{Float32, Float64}} =
    NNlib.groupcount(geometry) == 1 && NNlib.flipkernel(geometry)
plain_images(_, _, _, _) = false

"NNlib's `conv!`."
function convolve!(y, x, w, geometry)
    plain_images(geometry, y, x, w) || return NNlib.conv!(y, x, w, geometry)
    with_patches(y, x, w, geometry) do patches, kernel
        for b in axes(x, 4)
            to_columns!(patches, x, b)
            mul!(patches.pixels, patches.columns, kernel)
            from_pixels!(y, b, patches)
        end
    end
    return y
end

"NNlib's `∇conv_data!`."
function convolve_data!(xbar, ybar, w, geometry)
    plain_images(geometry, xbar, ybar, w) || return NNlib.∇conv_data!(xbar, ybar, w, geometry)
    fill!(xbar, 0)
    with_patches(ybar, xbar, w, geometry) do patches, kernel
        for b in axes(ybar, 4)
            to_pixels!(patches, ybar, b)
            mul!(patches.columns, patches.pixels, transpose(kernel))
            from_columns!(xbar, b, patches)
        end
    end
    return xbar
end

"NNlib's `∇conv_filter!`."
function convolve_filter!(wbar, x, ybar, geometry)
    plain_images(geometry, wbar, x, ybar) || return NNlib.∇conv_filter!(wbar, x, ybar, geometry)
    fill!(wbar, 0)
    with_patches(ybar, x, wbar, geometry) do patches, kernel
        for b in axes(x, 4)
            to_columns!(patches, x, b)
            to_pixels!(patches, ybar, b)
            mul!(kernel, transpose(patches.columns), patches.pixels, true, true)
        end
    end
    return wbar
end

"""
Buffers for one image. `frame` has the sizes (width, height, steps in both directions, channels): what a step of the kernel
leads to are neighbours in it. `columns` has a column for each entry of the kernel, which begins at that of `starts` in the
frame, and `pixels` one for each channel of the output; their rows are those of the frame, up to the last pixel.
"""
struct Patches{T}
    frame::Array{T, 5}
    starts::Vector{Int}
    before::NTuple{2, Int}
    columns::Matrix{T}
    pixels::Matrix{T}
end

"Calls `work` with the buffers for outputs like `y` of images like `x`, and the kernel as a matrix."
function with_patches(work, y::Array{T}, x, w, geometry) where {T}
    (sx, sy), (dx, dy), (px, _, py, _) = NNlib.stride(geometry), NNlib.dilation(geometry), NNlib.padding(geometry)
    width, height = size(y, 1) + (size(w, 1) - 1) * dx ÷ sx, size(y, 2) + (size(w, 2) - 1) * dy ÷ sy
    frame = acquire!(Vector{T}, (width, height, sx, sy, size(x, 3)))
    place = LinearIndices(frame)
    starts = map(CartesianIndices(axes(w)[1:3])) do entry
        (i, a), (j, b) = divrem((entry[1] - 1) * dx, sx), divrem((entry[2] - 1) * dy, sy)
        place[i + 1, j + 1, a + 1, b + 1, entry[3]]
    end
    rows = width * (size(y, 2) - 1) + size(y, 1)
    columns, pixels = acquire!(Vector{T}, (rows, length(starts))), acquire!(Vector{T}, (rows, size(w, 4)))
    fill!(frame, 0)
    fill!(pixels, 0)
    work(Patches(frame, vec(starts), (px, py), columns, pixels), reshape(w, :, size(w, 4)))
    return foreach(release!, (frame, columns, pixels))
end

"Calls `copy(to, from, step, count)` for each run of entries `to`, `to + 1`, ... of the frame and `from`, `from + step`, ... of an image."
function runs(copy, (; frame, before)::Patches, image)
    (width, height, sx, sy, channels), (px, py) = size(frame), before
    place = LinearIndices(frame)
    for channel in 1:channels, row in 1:image[2], a in 0:(sx - 1)
        j, b = divrem(row - 1 + py, sy)
        first, last = max(0, cld(px - a, sx)), min(width - 1, fld(image[1] - 1 + px - a, sx))
        (j < height && first <= last) || continue
        from = ((channel - 1) * image[2] + row - 1) * image[1] + first * sx + a - px + 1
        copy(place[first + 1, j + 1, a + 1, b + 1, channel], from, sx, last - first + 1)
    end
    return nothing
end

"Copies an image to the frame, and from there to the columns."
function to_columns!(patches::Patches, x, b)
    (; frame, starts, columns) = patches
    rows, behind = size(columns, 1), (b - 1) * stride(x, 4)
    runs(patches, size(x)) do to, from, step, count
        @simd ivdep for i in 0:(count - 1)
            @inbounds frame[to + i] = x[behind + from + i * step]
        end
    end
    foreach(((n, start),) -> copyto!(columns, (n - 1) * rows + 1, frame, start, rows), enumerate(starts))
    return columns
end

"Adds the columns up in the frame, and copies it to an image."
function from_columns!(x, b, patches::Patches)
    (; frame, starts, columns) = patches
    behind = (b - 1) * stride(x, 4)
    fill!(frame, 0)
    for (n, start) in enumerate(starts)
        @simd ivdep for i in axes(columns, 1)
            @inbounds frame[start - 1 + i] += columns[i, n]
        end
    end
    runs(patches, size(x)) do to, from, step, count
        @simd ivdep for i in 0:(count - 1)
            @inbounds x[behind + from + i * step] = frame[to + i]
        end
    end
    return x
end

"Copies the pixels of an output to their rows."
function to_pixels!((; frame, pixels)::Patches, y, b)
    for channel in axes(y, 3), row in axes(y, 2)
        at = (row - 1) * size(frame, 1)
        @simd ivdep for i in axes(y, 1)
            @inbounds pixels[at + i, channel] = y[i, row, channel, b]
        end
    end
    return pixels
end

"Copies them back."
function from_pixels!(y, b, (; frame, pixels)::Patches)
    for channel in axes(y, 3), row in axes(y, 2)
        at = (row - 1) * size(frame, 1)
        @simd ivdep for i in axes(y, 1)
            @inbounds y[i, row, channel, b] = pixels[at + i, channel]
        end
    end
    return y
end
