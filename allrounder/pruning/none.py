"""The dense model under a name: prunes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from allrounder.pruning.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class NoPruning(Strategy):
    """Budget 1: every token, every layer."""
