r"""The recommender in a shop on Django.

``gunicorn -c examples/workers/gunicorn_conf.py -k gthread --threads 4 \
examples.workers.django_shop:application``
"""

from __future__ import annotations

import json

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponseBadRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import path

from examples.workers import shop

# In a project: its settings module. Nothing here needs sessions, templates or a database.
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"], MIDDLEWARE=[])
django.setup()

shop.recommender()  # open the bundles now, not with the first request


def _asked(request: HttpRequest) -> tuple[list[str], str | None]:
    asked = json.loads(request.body)
    return [str(item) for item in asked.get("session", [])][:200], asked.get("visitor_id")


def recommendations(request: HttpRequest) -> HttpResponseBase:
    """Answer in the thread of the request."""
    try:
        question = shop.request_of(*_asked(request))
    except (AttributeError, TypeError, ValueError):
        return HttpResponseBadRequest("ask with session and visitor_id")
    answer = shop.recommender().recommend(question)
    return JsonResponse({"tier": answer.tier, "items": answer.items, "reason": answer.basis.reason})


def nothing(request: HttpRequest) -> HttpResponseBase:
    """Read a question and answer nothing: what the framework costs."""
    session, _ = _asked(request)
    return JsonResponse({"tier": "none", "items": session, "reason": "asked for nothing"})


def health(_: HttpRequest) -> HttpResponseBase:
    """Which worker this is, and which bundles it has."""
    return JsonResponse(shop.health())


urlpatterns = [
    path("recommendations", recommendations),
    path("nothing", nothing),
    path("health", health),
]

application = WSGIHandler()
