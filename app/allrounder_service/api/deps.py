"""The dependencies of the endpoints: the services that main built, and the caller's tenant.

All are coroutines, because FastAPI runs plain functions in a thread pool.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from allrounder.engine.protocols import EngineFacade, EngineState
from allrounder.errors import (
    AllrounderError,
    Draining,
    EngineDead,
    Loading,
    RateLimited,
    Unavailable,
)
from allrounder_service.api.auth import KeyRing
from allrounder_service.api.intake.api_request import ChatLimits
from allrounder_service.api.intake.images import ImageDecoder
from allrounder_service.api.key_file import Scope
from allrounder_service.api.limits import Limiter
from allrounder_service.jobs.facade import Jobs

RETRY_LOADING_SECONDS = 5.0

_bearer = HTTPBearer(auto_error=False, description="Only where the operator has set API keys.")


@dataclass(frozen=True, kw_only=True)
class Services:
    """Built once by main; all that the endpoints depend on.

    Attributes:
        refused: counts a request that was refused before it reached the engine.
        refresh: updates the metrics that are computed at a scrape.
        jobs: raises QueueUnavailable or QueueNotConfigured where there is none.
        protected: scopes that are required outside /v1 as well.
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


async def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


async def get_tenant(
    request: Request,
    services: ServicesDep,
    scopes: SecurityScopes,
    _shown_in_docs: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> AsyncIterator[str]:
    """The caller's tenant; holds one of its key's concurrent requests until the answer is sent."""
    caller = services.keys.caller_of(request.headers)
    caller.require(scopes.scopes)
    metered = request.state.metered = services.limiter.request(caller.name, caller.limits)
    try:
        metered.acquire()
    except RateLimited as err:
        services.refused(err)
        raise
    try:
        yield caller.tenant
    finally:
        metered.release()


TenantDep = Annotated[str, Depends(get_tenant)]
ChatTenantDep = Annotated[str, Security(get_tenant, scopes=[Scope.CHAT])]
BatchTenantDep = Annotated[str, Security(get_tenant, scopes=[Scope.BATCH])]


def protected(scope: Scope) -> Callable[..., Coroutine[Any, Any, None]]:
    """A dependency that requires a key with this scope, if the operator protects it."""

    async def check(request: Request, services: ServicesDep) -> None:
        if scope in services.protected:
            services.keys.caller_of(request.headers).require([scope])

    return check


async def get_jobs(services: ServicesDep, _tenant: BatchTenantDep) -> Jobs:
    """Depends on the tenant so that an unauthenticated caller is refused first."""
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
    """As `require_ready`, and counts the refusal."""
    try:
        require_ready(services.engine)
    except Unavailable as err:
        services.refused(err)
        raise
