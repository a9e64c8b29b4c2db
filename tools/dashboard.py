"""Writes deploy/grafana/dashboards/allrounder.json: `python -m tools.dashboard`."""

from __future__ import annotations

import json
from pathlib import Path

from tools.dashboard_layout import dashboard
from tools.dashboard_panels import ROWS

TARGET = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards" / "allrounder.json"


def rendered() -> str:
    return json.dumps(dashboard(ROWS), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(rendered(), encoding="utf-8")
