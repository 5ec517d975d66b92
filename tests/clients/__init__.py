"""Models as users of torchdiffeq and torchsde write them: they know nothing of regnde.

Each module is one pattern of use, written anew and small. It has `make(rtol, atol)`, a model in float64 with its data,
and `loss(model, data)`.
"""
