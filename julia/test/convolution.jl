# Our convolutions of images, against NNlib's.

using NNlib: NNlib, DenseConvDims
using Random: Xoshiro, randn
using RegNDE: convolve!, convolve_data!, convolve_filter!
using Test: @test, @testset

@testset "convolution of $T, stride $stride, padding $padding, dilation $dilation, $groups groups" for T in (Float32, Float64),
        (stride, padding, dilation, groups) in (
            ((1, 1), (1, 1), (1, 1), 1), ((1, 1), (0, 0), (1, 1), 1), ((2, 3), (2, 1), (1, 1), 1),
            ((1, 2), (3, 2), (2, 2), 1), ((1, 1), (5, 4), (1, 1), 1), ((1, 1), (1, 1), (1, 1), 2),
        )
    rng = Xoshiro(1)
    x, w = randn(rng, T, 9, 7, 4, 3), randn(rng, T, 3, 2, 4 ÷ groups, 6)
    geometry = DenseConvDims(x, w; stride, padding, dilation, groups, flipkernel = true)
    y = NNlib.conv(x, w, geometry)
    ybar = randn(rng, T, size(y)...)
    @test convolve!(fill!(similar(y), NaN), x, w, geometry) ≈ y
    @test convolve_data!(fill!(similar(x), NaN), ybar, w, geometry) ≈ NNlib.∇conv_data(ybar, w, geometry)
    @test convolve_filter!(fill!(similar(w), NaN), x, ybar, geometry) ≈ NNlib.∇conv_filter(x, ybar, geometry)
end
