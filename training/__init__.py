"""Offline runs: configuration, fitting, tuning, evaluation, records, reports, forgetting, retention.

Every use of data for a model happens on what `features.gate` let through. Nothing here serves a request.
"""
