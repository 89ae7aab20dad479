"""The router and the embedded recommender.

Here lives what runs inside a shop's service: request, permitted view, scorers, answer; and batches. What
answers a request needs NumPy and the standard library only (a lint contract names the modules); batches, the
registry and stores in databases need extras. Training is never imported; scorers see views, never requests.
"""

from consentier.serving.answer import Answer, Basis
from consentier.serving.catalogue import Catalogue
from consentier.serving.recommender import Recommender
from consentier.serving.request import Event, Request
from consentier.serving.view import PermittedView, Profiles, view_of

__all__ = [
    "Answer",
    "Basis",
    "Catalogue",
    "Event",
    "PermittedView",
    "Profiles",
    "Recommender",
    "Request",
    "view_of",
]
