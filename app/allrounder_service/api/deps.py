"""What the endpoints are given: the services that main built, and the caller's tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from allrounder.core import ChatRequest
from allrounder.engine.protocols import ChatStream, EngineFacade, EngineState
from allrounder.errors import (
    AllrounderError,
    Draining,
    EngineDead,
    Loading,
    RateLimited,
    Unavailable,
)
from allrounder_service.api.auth import KeyRing
from allrounder_service.api.intake.chat_body import ChatLimits
from allrounder_service.api.intake.image_decoder import ImageDecoder
from allrounder_service.api.key_file import Scope
from allrounder_service.api.limits import Limiter, Visit
from allrounder_service.jobs.facade import Jobs

RETRY_LOADING_SECONDS = 5.0

_bearer = HTTPBearer(auto_error=False, description="Only where the operator has set API keys.")


@dataclass(frozen=True, kw_only=True)
class Services:
    """Built once by main; the only way from an endpoint to anything else.

    Attributes:
        refused: counts a request that was turned away before the engine saw it.
        refresh: counts what a scrape shall show.
        jobs: raises where there is no queue to be had.
        protected: scopes that are asked for outside /v1.
    """

    engine: EngineFacade
    decoder: ImageDecoder
    limits: ChatLimits
    keys: KeyRing
    limiter: Limiter
    protected: frozenset[Scope]
    scrape: Callable[[str], tuple[bytes, str]]
    refused: Callable[[AllrounderError], None]
    max_body_bytes: int
    started: int
    refresh: Callable[[], Awaitable[None]]
    jobs: Callable[[], Jobs]


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


async def get_tenant(
    request: Request,
    services: ServicesDep,
    scopes: SecurityScopes,
    _shown_in_docs: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> AsyncIterator[str]:
    """Holds one of the key's concurrent requests until the answer has been sent."""
    caller = services.keys.caller_of(request.headers)
    caller.require(scopes.scopes)
    visit = request.state.visit = services.limiter.visit(caller.name, caller.limits)
    try:
        visit.enter()
    except RateLimited as err:
        services.refused(err)
        raise
    try:
        yield caller.tenant
    finally:
        visit.leave()


TenantDep = Annotated[str, Depends(get_tenant)]
ChatTenantDep = Annotated[str, Security(get_tenant, scopes=[Scope.CHAT])]
BatchTenantDep = Annotated[str, Security(get_tenant, scopes=[Scope.BATCH])]


def protected(scope: Scope) -> Callable[..., Coroutine[Any, Any, None]]:
    """Asks for a key with this scope where the operator wants one."""

    async def check(request: Request, services: ServicesDep) -> None:
        if scope in services.protected:
            services.keys.caller_of(request.headers).require([scope])

    return check


async def submit(request: Request, services: Services, asked: ChatRequest) -> ChatStream:
    """Hands it to the engine and charges it to the key. Raises what the engine raises."""
    stream = await services.engine.submit(asked)
    visit: Visit = request.state.visit
    visit.charge(stream)
    return stream


def get_jobs(services: ServicesDep, _tenant: BatchTenantDep) -> Jobs:
    """A caller without a key learns nothing, so the tenant comes first."""
    return services.jobs()


JobsDep = Annotated[Jobs, Depends(get_jobs)]


def require_ready(engine: EngineFacade) -> None:
    """Raises the 503 that fits the engine's state, before any body is read."""
    match engine.status().state:
        case EngineState.LOADING:
            raise Loading("the model is loading", retry_after_seconds=RETRY_LOADING_SECONDS)
        case EngineState.DRAINING | EngineState.STOPPED:
            raise Draining("the server is stopping")
        case EngineState.DEAD:
            raise EngineDead("the engine has failed; the server must be restarted")
        case EngineState.READY:
            return


def require_admission(services: Services) -> None:
    """`require_ready` for a request that wants an answer: its refusal is counted."""
    try:
        require_ready(services.engine)
    except Unavailable as err:
        services.refused(err)
        raise
