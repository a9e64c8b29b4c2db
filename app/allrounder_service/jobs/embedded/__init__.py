"""A real Redis or Valkey server that this process starts, supervises and stops."""
