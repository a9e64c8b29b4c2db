"""Tracing: a span per request with a child per stage; OpenTelemetry is imported only if enabled."""
