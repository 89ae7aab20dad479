"""Estimators: interaction matrices in, item weights out; and the bundle format that holds the weights.

No consent and no shop table is known here, and nothing about a person is stored. Serving imports `bundle`,
`item_index` and `scoring`, which need NumPy only; fitting needs the `train` extra.
"""
