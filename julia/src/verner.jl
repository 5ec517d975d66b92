# Verner's pairs beside vern7: J. H. Verner, Numer. Algorithms 53 (2010) 383-396. Their hundreds of
# coefficients are read, by name, from the tables that OrdinaryDiffEqVerner itself steps with: `a0704` or
# `a74` is a_{7,4}, `b7`, `btilde7` likewise, and `r075` the coefficient of theta^5 in the interpolant's
# weight of stage 7.

"The method of so many stages whose coefficients stand in `tables`."
function verner(stages, extra, fsal, tables...)
    n = stages + extra
    a, b, btilde = zeros(n, n), zeros(n), zeros(n)
    dense = zeros(n, 9)
    for table in tables, symbol in fieldnames(typeof(table))
        value, text = getfield(table, symbol), String(symbol)
        if (found = match(r"^a(\d\d?)(\d\d)$|^a(\d)(\d)$", text)) !== nothing
            i, j = parse.(Int, filter(!isnothing, found.captures))
            # "a101" is stage 10's first weight: of three digits the last one is the column
            length(text) == 4 && ((i, j) = (parse(Int, text[2:3]), parse(Int, text[4:4])))
            a[i, j] = value
        elseif (found = match(r"^btilde(\d+)$", text)) !== nothing
            btilde[parse(Int, found[1])] = value
        elseif (found = match(r"^b(\d+)$", text)) !== nothing
            b[parse(Int, found[1])] = value
        elseif (found = match(r"^r(\d\d)(\d)$", text)) !== nothing
            dense[parse(Int, found[1]), parse(Int, found[2])] = value
        end
    end
    fsal && (b[1:stages] = a[stages, 1:stages])
    # the tables name the times by rank, not by stage; they are the row sums anyway
    c = vec(sum(a; dims = 2))
    c[abs.(c .- 1) .< 1.0e-12] .= 1.0
    return Tableau(stages, extra, a, c, b, btilde, dense, fsal, true)
end

verner(table, stages, extra, fsal) = verner(stages, extra, fsal, table, table.extra, table.interp)
