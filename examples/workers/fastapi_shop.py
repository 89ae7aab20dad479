r"""The recommender in a service on FastAPI.

``gunicorn -c examples/workers/gunicorn_conf.py -k uvicorn_worker.UvicornWorker \
examples.workers.fastapi_shop:app``
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from consentier import AsyncRecommender
from consentier.serving.request import MAX_ID_CHARACTERS
from examples.workers import shop

answering = AsyncRecommender(shop.recommender(), threads=4)


Id = Annotated[str, Field(max_length=MAX_ID_CHARACTERS)]


class Visit(BaseModel):
    """What a page asks with."""

    model_config = ConfigDict(extra="forbid")

    session: list[Id] = Field(default=[], max_length=200)
    visitor_id: Id | None = None


@contextlib.asynccontextmanager
async def life(_: FastAPI) -> AsyncIterator[None]:
    """Let the requests that are under way end."""
    async with answering:
        yield


app = FastAPI(lifespan=life)


@app.post("/recommendations")
async def recommendations(visit: Visit) -> dict[str, Any]:
    """Answer beside the event loop: ledger and stores may block."""
    answer = await answering.recommend(shop.request_of(visit.session, visit.visitor_id))
    return {"tier": answer.tier, "items": answer.items, "reason": answer.basis.reason}


@app.post("/nothing")
async def nothing(visit: Visit) -> dict[str, Any]:
    """Read a question and answer nothing: what the framework costs."""
    return {"tier": "none", "items": visit.session, "reason": "asked for nothing"}


@app.get("/health")
async def health() -> dict[str, Any]:
    """Which worker this is, and which bundles it has."""
    return shop.health()
