"""The microservice around the library: HTTP, batch jobs, metrics, tracing and web pages."""
