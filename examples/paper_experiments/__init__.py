"""Experiments of Pal et al. (ICML 2021, "A") and Pal, Edelman, Rackauckas (ICML 2023, "B")."""
