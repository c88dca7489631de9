"""The review application: the page, the pictures and the verdicts. No request names a file."""

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from pipeline.review.session import Session
from stages.errors import InputError

HERE = Path(__file__).parent
FOREVER = "private, max-age=31536000, immutable"
Id = Annotated[str, Field(pattern="^[A-Za-z0-9-]{8,64}$")]
Kind = Literal["sample", "train", "difference", "next-0", "next-1", "next-2", "next-3"]


class Act(BaseModel):
    """The fields of every writing request: the reviewer, and a unique id, so that sending it twice changes nothing."""

    model_config = ConfigDict(extra="forbid")

    id: Id
    reviewer: str


class Decision(Act):
    """A verdict on a pair."""

    sample_id: str
    train_id: str
    verdict: Literal["copy", "not", "unsure"]


def make_app(session: Session) -> FastAPI:
    """The application for one session; it must stand behind a Guard."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(OSError)
    @app.exception_handler(InputError)
    def not_written(request: Request, error: Exception) -> JSONResponse:
        """Answer with an error: the page keeps the verdict and sends it again."""
        return JSONResponse({"detail": str(error)}, 507)

    def check(act: Act) -> None:
        if act.reviewer != session.reviewer:
            raise HTTPException(409, f"this server records the verdicts of {session.reviewer}: reload the page")

    def static(path: str, name: str, kind: str) -> None:
        def serve() -> Response:
            return Response((HERE / name).read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})

        app.get(path)(serve)

    static("/", "page.html", "text/html; charset=utf-8")
    static("/page.css", "page.css", "text/css; charset=utf-8")
    static("/page.js", "page.js", "text/javascript; charset=utf-8")

    @app.get("/api/pairs")
    def pairs() -> dict[str, Any]:
        return session.overview()

    @app.get("/api/verdicts")
    def verdicts(response: Response) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        return session.current()

    @app.get("/picture/{version}/{number}/{kind}.png")
    def picture(version: str, number: int, kind: Kind, gain: Annotated[int, Query(ge=1, le=64)] = 1) -> Response:
        content = session.picture(number, kind, gain) if version == session.version else None
        if content is None:
            raise HTTPException(404, "unknown picture: reload the page")
        return Response(content, media_type="image/png", headers={"cache-control": FOREVER})

    @app.post("/api/decide")
    def decide(decision: Decision) -> dict[str, Any]:
        check(decision)
        pair = (decision.sample_id, decision.train_id)
        if not session.knows(pair):
            raise HTTPException(409, "the candidates have changed and no longer hold this pair: reload the page")
        return session.decide(decision.id, pair, decision.verdict)

    @app.post("/api/undo")
    def undo(act: Act) -> dict[str, Any]:
        check(act)
        return session.undo(act.id)

    return app
