# Convolutions of images in the processor's memory: columns of patches, copied row by row, and one product of matrices.
# NNlib's own copies them entry by entry, and takes two to three times as long. It has all other cases.

"Whether these are plain images, in arrays of their own, without groups."
plain_images(geometry, ::Array{T, 4}, ::Array{T, 4}, ::Array{T, 4}) where {T <: Union{Float32, Float64}} =
    NNlib.groupcount(geometry) == 1 && NNlib.flipkernel(geometry)
plain_images(_, _, _, _) = false

"NNlib's `conv!`."
function convolve!(y, x, w, geometry)
    plain_images(geometry, y, x, w) || return NNlib.conv!(y, x, w, geometry)
    with_columns(y, w) do columns, kernel
        for b in axes(x, 4)
            to_columns!(columns, x, b, size(w), size(y), geometry)
            mul!(image(y, b), columns, kernel)
        end
    end
    return y
end

"NNlib's `∇conv_data!`."
function convolve_data!(xbar, ybar, w, geometry)
    plain_images(geometry, xbar, ybar, w) || return NNlib.∇conv_data!(xbar, ybar, w, geometry)
    fill!(xbar, 0)
    with_columns(ybar, w) do columns, kernel
        for b in axes(ybar, 4)
            mul!(columns, image(ybar, b), transpose(kernel))
            from_columns!(xbar, columns, b, size(w), size(ybar), geometry)
        end
    end
    return xbar
end

"NNlib's `∇conv_filter!`."
function convolve_filter!(wbar, x, ybar, geometry)
    plain_images(geometry, wbar, x, ybar) || return NNlib.∇conv_filter!(wbar, x, ybar, geometry)
    fill!(wbar, 0)
    with_columns(ybar, wbar) do columns, kernel
        for b in axes(x, 4)
            to_columns!(columns, x, b, size(wbar), size(ybar), geometry)
            mul!(kernel, transpose(columns), image(ybar, b), true, true)
        end
    end
    return wbar
end

"An image as a matrix (pixels, channels)."
image(y::Array{T, 4}, b) where {T} =
    reshape(view(y, :, :, :, b), size(y, 1) * size(y, 2), size(y, 3))

"Calls `work` with a matrix for the patches of an image, and the kernel as a matrix."
function with_columns(work, y::Array{T}, w) where {T}
    entries = size(w, 1) * size(w, 2) * size(w, 3)
    columns = acquire!(Vector{T}, (size(y, 1) * size(y, 2), entries))
    work(columns, reshape(w, entries, size(w, 4)))
    return release!(columns)
end

"""
    rows_of_patches(copy, image, kernel, out, geometry)

Calls `copy(pixels, column, inside, from, row, channel, step)` for each entry of the kernel, which has a `column`, and
each row of pixels of the output, which begins in it behind `pixels`. The pixels `inside` read the image in that `row`
and `channel`, the first of them its entry `from` and each further one the entry that is a `step` on; the others read
zeros around the image.
"""
function rows_of_patches(copy, image, kernel, out, geometry)
    (sx, sy), (dx, dy), (px, _, py, _) = NNlib.stride(geometry), NNlib.dilation(geometry), NNlib.padding(geometry)
    column = 0
    for channel in 1:kernel[3], ky in 1:kernel[2], kx in 1:kernel[1]
        column += 1
        begins = (kx - 1) * dx - px + 1  # the entry of a row that the first pixel reads
        first = max(1, cld(1 - begins, sx) + 1)
        last = min(out[1], fld(image[1] - begins, sx) + 1)
        for pixel in 1:out[2]
            row = (pixel - 1) * sy + (ky - 1) * dy - py + 1
            inside = 1 <= row <= image[2] ? (first:last) : (1:0)
            copy((pixel - 1) * out[1], column, inside, begins + (first - 1) * sx, row, channel, sx)
        end
    end
    return nothing
end

function to_columns!(columns, x, b, kernel, out, geometry)
    return rows_of_patches(size(x), kernel, out, geometry) do pixels, column, inside, from, row, channel, step
        @inbounds for i in 1:(isempty(inside) ? out[1] : first(inside) - 1)
            columns[pixels + i, column] = 0
        end
        @simd ivdep for i in inside
            @inbounds columns[pixels + i, column] = x[from + (i - first(inside)) * step, row, channel, b]
        end
        isempty(inside) || @inbounds for i in (last(inside) + 1):out[1]
            columns[pixels + i, column] = 0
        end
    end
end

function from_columns!(x, columns, b, kernel, out, geometry)
    return rows_of_patches(size(x), kernel, out, geometry) do pixels, column, inside, from, row, channel, step
        @simd ivdep for i in inside
            @inbounds x[from + (i - first(inside)) * step, row, channel, b] += columns[pixels + i, column]
        end
    end
end
