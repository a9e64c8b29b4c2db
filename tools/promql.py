"""Expressions over one metric of ours, with the selection that the dashboard's variables make."""

from __future__ import annotations

SELECTION = 'job=~"$job", instance=~"$instance"'


def labels(**matchers: str) -> str:
    """The variables' selection and these; a value may begin with its operator, `=~` or `!~`."""
    pairs = [SELECTION]
    for label, value in matchers.items():
        operator = value[:2] if value[:2] in ("=~", "!~") else "="
        pairs.append(f'{label}{operator}"{value.removeprefix(operator)}"')
    return "{" + ", ".join(pairs) + "}"


def gauge(name: str, **matchers: str) -> str:
    return f"allrounder_{name}{labels(**matchers)}"


def rate(name: str, **matchers: str) -> str:
    return f"rate({gauge(name, **matchers)}[$__rate_interval])"


def total(name: str, **matchers: str) -> str:
    return f"sum({rate(name, **matchers)})"


def by(label: str, name: str, **matchers: str) -> str:
    return f"sum by ({label}) ({rate(name, **matchers)})"


def quantile(share: float, name: str, *kept: str) -> str:
    return f"histogram_quantile({share}, {by(', '.join([*kept, 'le']), f'{name}_bucket')})"


def percentiles(name: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"p{round(100 * share)}", quantile(share, name)) for share in (0.5, 0.9, 0.99))


def mean(name: str) -> str:
    return over(total(f"{name}_sum"), total(f"{name}_count"))


def over(part: str, whole: str) -> str:
    return f"{part} / {whole}"
