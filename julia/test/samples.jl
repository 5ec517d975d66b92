# Work that is shared out over threads: with one thread as with several.

using RegNDE: RegNDE, FieldError, on_threads, of_sample
using Test: @test, @test_throws, @testset

@testset "each item is worked on once, and what it throws is thrown" begin
    @test on_threads(i -> i^2, 1:1) == [1]
    @test on_threads(i -> i^2, 1:3) == [1, 4, 9]
    for items in (1:1, 1:3)
        @test_throws FieldError on_threads(i -> throw(FieldError("no")), items)
        @test_throws DomainError on_threads(i -> sqrt(-i), items)
    end
end

@testset "tolerances of a sample" begin
    @test of_sample(0.5, 2, 3) == 0.5
    @test of_sample(collect(1:6), 2, 3) == [4, 5, 6]
end
