# What holds of any well-made package: no ambiguous or pirated methods, no unbound parameters, no stale dependencies.

using Aqua: Aqua
using RegNDE: RegNDE

# The search for persistent tasks installs the package anew from a registry, which a machine without one can not.
Aqua.test_all(RegNDE; persistent_tasks = false)
