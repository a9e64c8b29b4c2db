"""`allrounder chat` and `allrounder plan`: one request to a running server."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer

_URL = "http://127.0.0.1:8000"
_TIMEOUT_SECONDS = 600

Image = Annotated[Path, typer.Option(help="A PNG, JPEG, WebP or GIF file.", exists=True)]
QuestionText = Annotated[str, typer.Option(help="What to ask about the image.")]
BudgetText = Annotated[str, typer.Option(help="A number, or a JSON form as in the README.")]
Url = Annotated[str, typer.Option(help="Where the server listens.", envvar="ALLROUNDER_URL")]
ApiKey = Annotated[str | None, typer.Option(help="Key, if asked for.", envvar="ALLROUNDER_API_KEY")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")]


def register(cli: typer.Typer) -> None:
    cli.command()(chat)
    cli.command()(plan)


def chat(
    image: Image,
    question: QuestionText,
    budget: BudgetText = "1",
    url: Url = _URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question about one image and print the answer."""
    answer = _post(f"{url}/v1/chat", _body(image, question, budget), api_key)
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    pruning = answer["pruning"]
    expected = pruning["budget"]["expected_loyalty"]
    typer.echo(answer["answer"])
    typer.echo(
        f"{pruning['strategy']}: {pruning['visual_tokens']['kept']} of "
        f"{pruning['visual_tokens']['total']} visual tokens, {pruning['layers']['run']} of "
        f"{pruning['layers']['total']} layers, {pruning['flops']['prefill_ratio']:.3f} of prefill"
        + ("" if expected is None else f", loyalty {expected:.3f} expected"),
        err=True,
    )


def plan(
    image: Image,
    question: QuestionText,
    budget: BudgetText = "1",
    url: Url = _URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show the plan a request would get, without generating."""
    answer = _post(f"{url}/v1/plan", _body(image, question, budget), api_key)
    typer.echo(json.dumps(answer, ensure_ascii=False, indent=None if as_json else 2))


def _body(image: Path, question: str, budget: str) -> dict[str, Any]:
    encoded = base64.b64encode(image.read_bytes()).decode()
    return {
        "image": f"data:application/octet-stream;base64,{encoded}",
        "question": question,
        "budget": _parsed(budget),
    }


def _parsed(budget: str) -> Any:
    try:
        return json.loads(budget)
    except ValueError:
        return budget


def _post(url: str, body: dict[str, Any], api_key: str | None) -> dict[str, Any]:
    import httpx2

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx2.post(url, json=body, headers=headers, timeout=_TIMEOUT_SECONDS)
    except httpx2.TransportError as err:
        typer.echo(f"no answer from {url}: {type(err).__name__}", err=True)
        raise typer.Exit(1) from err
    answer: dict[str, Any] = response.json()
    if response.is_error:
        typer.echo(json.dumps(answer, ensure_ascii=False), err=True)
        raise typer.Exit(1)
    return answer
