"""From rows of panels to Grafana's JSON: places, curves, variables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRID_WIDTH = 24


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One graph, or with `kind` "stat" one number; `curves` are (legend, expression)."""

    title: str
    unit: str
    curves: Sequence[tuple[str, str]]
    description: str = ""
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    title: str
    panels: Sequence[Panel]


def dashboard(rows: Sequence[Row]) -> dict[str, Any]:
    """Grafana's JSON of a dashboard with these rows."""
    return {
        "uid": "allrounder",
        "title": "Allrounder",
        "description": "What was asked, what it cost, what was saved; made by tools/dashboard.py.",
        "tags": ["allrounder"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [*_variables()]},
        "annotations": {"list": []},
        "panels": [*_placed(rows)],
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }
    yield _choice("job", "label_values(allrounder_engine_state, job)")
    yield _choice("instance", 'label_values(allrounder_engine_state{job=~"$job"}, instance)')


def _choice(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Panels from left to right, a new line where one does not fit."""
    panel_id, top = 1, 0
    for row in rows:
        yield {
            "id": panel_id,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": GRID_WIDTH, "h": 1},
        }
        panel_id, top, left, height = panel_id + 1, top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > GRID_WIDTH:
                top, left = top + height, 0
            height = 4 if panel.kind == "stat" else 8
            yield _drawn(panel, panel_id, {"x": left, "y": top, "w": panel.width, "h": height})
            panel_id, left = panel_id + 1, left + panel.width
        top += height


def _drawn(panel: Panel, panel_id: int, place: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 20 if panel.stacked else 5, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    return {
        "id": panel_id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "custom": custom if panel.kind == "timeseries" else {},
            },
            "overrides": [],
        },
        "options": _options(panel.kind),
        "targets": [
            {
                "refId": chr(ord("A") + idx),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
            }
            for idx, (legend, expression) in enumerate(panel.curves)
        ],
    }


def _options(kind: str) -> dict[str, Any]:
    if kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"}
    return {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
