"""Quality and cost beside peers, on published splits: one command per table.

    python -m benchmarks.quality.session --data DATA --set diginetica
    python -m benchmarks.quality.tables benchmarks/results/*.json

See docs/benchmarks.md for the tables, the protocols and what DATA holds.
"""
