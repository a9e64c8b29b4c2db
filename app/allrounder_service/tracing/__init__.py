"""Traces: one span per request, its stages below; without OpenTelemetry until it is asked for."""
