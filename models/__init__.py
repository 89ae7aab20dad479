"""Estimators: interaction matrices in, item weights out; and the bundle format that holds the weights.

No consent and no shop table is known here, and nothing about a person is stored. What serving imports needs
NumPy only (a lint contract names the modules), and Numba where it is there; fitting needs the `train` extra.
"""
