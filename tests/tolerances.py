"""Every tolerance of the tests, by name, with its reason."""

EXACT = 0.0
"""Equal to the last bit: the same operations in the same order."""

ROUNDING = 1e-12
"""Relative, float64: the same formula with another order of operations."""

CANCELLED = 1e-8
"""Relative, float64: ROUNDING in gradients of estimates, which are norms of differences that cancel to 1e-6."""

GRADIENT = 1e-5
"""Relative: an exact gradient against central differences in float64 (their own error is about 1e-7)."""

GOLDEN_DT = 2e-3
"""Relative, dt and error against Julia where rounding does not decide. Julia's `fastpower` is a Float32
approximation, off by about 1e-5 per power (sciml.md B.2): times t of the steps differ by 1e-5, a step
size by a few times that, and the last step, which is what remains of the span, by more."""

GOLDEN_T = 2e-4
"""Relative, step ends against Julia, for the same reason."""

GOLDEN_ERROR = 3e-2
"""Relative, error and stiffness on steps that differ by GOLDEN_DT: E goes with dt to the power order + 1."""

GOLDEN_ESTIMATE = 1e-7
"""Relative, estimates of one replayed step: differences of stages that cancel."""

GOLDEN_REPLAY = 1e-12
"""Relative, one step from Julia's own t, dt, u: only fused multiply-adds and summation order differ."""

GOLDEN_GRADIENT = 1e-6
"""Relative, gradients on Julia's steps; the file's own central differences agree to about 1e-7."""

ORDER = 0.3
"""Slope of log error over log step size, over at least five step sizes."""

SOLVER = 100.0
"""Global error as a multiple of the tolerance asked for, over spans of a few units of time."""

STANDARD_ERRORS = 3.0
"""Seeded statistics, in standard errors."""

MANY_STANDARD_ERRORS = 5.0
"""The same where a test makes hundreds of such comparisons: by chance one of 1.7 million fails."""

DEVICES = 2e-15
"""Relative, float64 functions (log, cos, sin) of the CPU's and the GPU's libraries: a few units in the last place."""

BFLOAT16 = 0.1
"""Relative, in norm: values and gradients of small networks under autocast, where every product is rounded to 2^-8."""

NEAR_ONE = 1e-3
"""Absolute, normals in float32: a uniform number near 1 is rounded by 3e-8, the radius by the root of twice that."""

SINGLE = 1e-5
"""Relative and absolute, float32: the same formula by another library, whose sums have another order."""

FLOAT16 = 0.01
"""Relative, in norm: gradients of one layer under autocast, where every product is rounded to 2^-11."""

SHOWN = 0.05
"""Relative, numbers that a page shows against those that its program prints: other processors round otherwise, and a
training grows the difference. A number may also differ by one unit of its last digit."""

TF32 = 0.03
"""Relative and absolute, float32 on a GPU: products of small networks rounded to 2^-11."""
