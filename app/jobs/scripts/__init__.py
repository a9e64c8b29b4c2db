"""The transitions as Lua; `app.jobs.sources` says what they share and how they are read."""
