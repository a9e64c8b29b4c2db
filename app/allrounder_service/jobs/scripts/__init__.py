"""The transitions as Lua; `jobs.lua` says what they share and how they are read."""
