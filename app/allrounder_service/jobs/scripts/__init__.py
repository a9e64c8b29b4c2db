"""The transitions of the queue as Lua scripts; `jobs.queue` loads and calls them."""
