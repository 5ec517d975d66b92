# Work that is shared out over threads: with one thread as with several.

using RegNDE: RegNDE, Cotangents, Dynamics, Field, FieldError, Recording, Settings, forward!, of_sample, on_threads, reverse!
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

"u' = p s u (u - 2), s = 1 before t = 0.4, then 1/2, NaN where u < -50: from 1 a decay, from 8 a solution that ends at once."
function quadratic(p)
    s(t) = t < 0.4 ? 1.0 : 0.5
    value!(dy, t, y, p, _) = (dy .= map(u -> u < -50 ? NaN : p[1][1] * s(t) * u * (u - 2), y); nothing)
    function vjp!(ybar, pbar, ct, t, y, p, _)
        pbar[1] .+= s(t) * sum(ct .* y .* (y .- 2))
        ybar .= p[1][1] .* s(t) .* ct .* (2 .* y .- 2)
        return nothing
    end
    return Dynamics(value!, vjp!, p, nothing)
end

"Everything that a solve found, and its gradient, with the buffers that `kept` refers to."
function found(rec, field, pbar, kept...)
    calls = field.calls[]
    fill!(pbar[1], 0)
    records = map(list -> isempty(list) ? nothing : one.(list), (rec.error, rec.stiffness))
    y0bar = rec.settings.keep === :nothing ? [NaN] :
        reverse!(similar(rec.y0), rec, kept..., field, Cotangents(rec, one.(rec.ys), records...))
    crossings = [(here.step, here.start, here.before..., here.after...) for here in rec.crossings]
    return (
        rec.t, rec.dt, rec.error, rec.stiffness, rec.implicit, rec.ys, rec.rejected, rec.saved, rec.dt_first, rec.t_last,
        rec.dt_last, rec.first_error, rec.status, rec.reason, crossings, rec.pieces, calls, y0bar, copy(pbar[1]),
    )
end

@testset "a solver and its reverse that are used again find what new ones find: $name" for (name, options) in (
        ((string(m), (; method = m)) for m in (:tsit5, :dp5, :bs3, :heun, :vern6, :vern7, :vern8, :vern9))...,
        ((string(m), (; method = m, keep = :nothing)) for m in (:rosenbrock23, :autotsit5, :trbdf2))...,
        "rk4" => (; method = :rk4, grid = [0.2, 0.4, 1.0]), "keep states" => (; keep = :states), "keep nothing" => (; keep = :nothing),
        "backward" => (; times = [1.0, 0.3, 0.0]), "first size" => (; dt0 = 0.05), "bounds" => (; dt_min = 1.0e-3, dt_max = 0.1),
        (("$c control", (; controller = Base.Fix1(RegNDE.controller, (c, k)))) for (c, k) in
            (("PI", fill(NaN, 7)), ("I", fill(NaN, 4)), ("PID", [0.7, -0.4, 0.0, 0.81])))...,
        "stop" => (; stops = [0.4]), "event" => (; event = true), "event and stop" => (; event = true, stops = [0.4]),
        "few steps" => (; max_steps = 4), "tolerances of each entry" => (; each = true),
    )
    times, method = get(options, :times, [0.0, 0.3, 1.0]), RegNDE.method(get(options, :method, :tsit5))
    segments = haskey(options, :stops) ? RegNDE.segments(Float64, times[1], times[end], options.stops) : RegNDE.Segment[]
    given = Base.structdiff(options, NamedTuple{(:times, :method, :stops, :event, :each)})
    pbar = ([0.0],)
    field = Field(quadratic(([1.0],)), (2,), Vector{Float64}; pbar)
    level = Dynamics((g, t, y, p, _) -> (g .= y[1] - 0.5; nothing), (args...) -> nothing, (), nothing)
    conditions = haskey(options, :event) ?
        RegNDE.Conditions([Field(level, (2,), Vector{Float64})], [0], [true]) : nothing
    function recording((y0, rtol))
        tolerances = haskey(options, :each) ? (; rtol = [rtol, 10rtol], atol = [1.0e-6, rtol]) : (; rtol, atol = 1.0e-6)
        settings = Settings(; tolerances..., segments, given...)
        return Recording(method, settings, times, [y0, 0.3], zeros(2, length(times)))
    end
    function solve!(rec, kept...)
        field.calls[] = 0
        forward!(rec, kept..., field; conditions)
        return rec
    end
    samples = [(1.0, 1.0e-4), (8.0, 1.0e-4), (1.9, 1.0e-8), (NaN, 1.0e-4), (-0.5, 1.0e-3), (-60.0, 1.0e-4), (0.6, 1.0e-6)]
    fresh = map(samples) do sample
        rec = solve!(recording(sample))
        found(rec, field, pbar)
    end
    statuses = Set(x[13] for x in fresh)
    haskey(options, :times) || @test issubset([:nonfinite], statuses)
    haskey(options, :event) && @test :event in statuses
    kept = Ref{Any}(nothing)
    for order in (1:7, 7:-1:1, [2, 1, 4, 3, 6, 7, 5], [1, 1, 2, 2, 3])
        swept = Ref{Any}(nothing)
        recordings = [(rec = recording(samples[i]); solve!(rec, kept); (i, rec, field.calls[])) for i in order]
        for (i, rec, calls) in recordings  # behind all the solves: no later one has touched this one's tape
            field.calls[] = calls
            @test isequal(found(rec, field, pbar, swept), fresh[i])
        end
    end
end
