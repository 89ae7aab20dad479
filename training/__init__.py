"""Offline runs: configuration, splits, fitting, evaluation, tracking, reports.

Every use of data for a model happens on what `features.gate` let through. Nothing here serves a request.
"""
