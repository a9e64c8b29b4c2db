"""Every Redis key and every lifetime of batch jobs, each with its reason.

All keys share the hash tag `{v}`, so that a cluster keeps them in one slot and one script may touch
them all. The scripts build the same names from the same prefix; `scripts/common.lua` is the only
other place that names them. A *line* is one request of a batch; its job is
`<batch>/<line number>`, so that a repeated submission of a line is recognised.

| key | type | holds |
|---|---|---|
| `job:<id>` | hash | the source of truth about a line: state, fencing token, stream entry, result |
| `lane:<name>` | stream | lines that wait or run; an entry is deleted when its job ends |
| `backlog:<tenant>` | list | batches with lines beyond the tenant's window, from their `next` on |
| `window` | hash | lines of each tenant that wait in the lane `batch` |
| `depth` | hash | lines admitted and not ended, in total and by tenant |
| `held` | string | lines of batches that were not cleaned up, ended or not: they take memory |
| `batch:<id>` | hash | the batch: status, counts, times, the fencing token of its controller |
| `batches:<tenant>` | sorted set | ids by time of creation, for lists with cursors |
| `files:<tenant>` | sorted set | likewise |
| `care` | sorted set | batches by the time (ms) when they are due for a batch controller |
| `file:<id>` | hash | the record of a file; its bytes are on the volume |
| `blob:<sha256>` | set | ids of files and batches that refer to these bytes |
| `expiries` | sorted set | files by the time (s) when they are deleted |
| `idem:<tenant>:<key>` | hash | the batch of this idempotency key, and the request's digest |
| `solo` | string | the worker that runs suspect lines alone, once its other lines have ended |
| `workers` | sorted set | workers by their last heartbeat (ms) |
| `dead` | stream | dead letters: lines whose worker crashed while it ran them alone |
| `reaped` | string | when (ms) expired leases were last reaped |
| `grace` | string | exists during the grace period after an outage of Redis: no lease is reaped |
| `stats` | hash | counters: lease_lost, redelivered, stale_results, dead |
| `sweeping` | string | a sweep of the volume began within the last SWEEP_SECONDS |
| `volume` | string | id of the volume that holds the bytes |
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "vq:{v}:"
GROUP: Final = "g"
# Batches by the time when they are due. Existing queues hold it under this name.
DUE: Final = "care"

LANE_SUSPECT: Final = "suspect"
LANE_RETRY: Final = "retry"
LANE_BATCH: Final = "batch"
# In order of claiming: lines that may crash a worker first, then those that were started before.
LANES: Final = (LANE_SUSPECT, LANE_RETRY, LANE_BATCH)

# Fairness: another tenant waits behind at most this many lines of each tenant.
WINDOW: Final = 64
# The visibility timeout of a claimed line: long enough for a pause of the process or of Redis,
# short enough that the lines of a crashed worker are retried soon.
LEASE_MS: Final = 30_000
# Six heartbeats in a lease: five may fail in a row.
HEARTBEAT_SECONDS: Final = 5.0
# The lease on running alone is longer than the lease on the line itself.
SOLO_LEASES: Final = 3
# A line that crashed its worker twice while it ran alone is the cause: it becomes a dead letter.
MAX_SOLO_CRASHES: Final = 2
# OpenAI's clients repeat a request within minutes; a day also covers a queue that retries.
IDEMPOTENCY_SECONDS: Final = 24 * 3600
# The output file holds every result; the job is kept for diagnosis. Admission control no longer
# counts its memory, so the time is short.
ENDED_JOB_SECONDS: Final = 600
# Batches and the files they made, unless the request says how long.
RETENTION_SECONDS: Final = 30 * 24 * 3600
# An idle consumer without pending entries is removed after this time.
CONSUMER_IDLE_MS: Final = 10 * 60_000
# OpenAI's bounds of `expires_after` and `output_expires_after`.
MIN_EXPIRY_SECONDS: Final = 3600
MAX_EXPIRY_SECONDS: Final = RETENTION_SECONDS
# The volume is swept at most this often, by one process.
SWEEP_SECONDS: Final = 300
# Bytes reach the volume just before the record that refers to them; this is far longer.
GRACE_SECONDS: Final = 600
# Longer than an upload may pause between two writes: older drafts belong to crashed writers.
DRAFT_SECONDS: Final = 3600


def key(*parts: str) -> str:
    """`key("job", id)` is the name of that job's hash."""
    return PREFIX + ":".join(parts)
