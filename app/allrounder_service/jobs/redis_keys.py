"""Every Redis key and every lifetime of batch jobs, each with its reason.

All keys share the hash tag `{v}`, so that a cluster keeps them in one slot and one script may touch
them all. The scripts build the same names from the same prefix; `scripts/common.lua` is their only
other home. A *line* is one request of a batch; its job is `<batch>/<line number>`, so that putting
a line in twice is seen.

| key | type | holds |
|---|---|---|
| `job:<id>` | hash | the only truth about a line: state, fence, stream entry, crashes, result |
| `lane:<name>` | stream | lines that wait or run; an entry leaves when its job ends |
| `backlog:<tenant>` | list | batches with lines beyond the tenant's window, from their `next` on |
| `window` | hash | lines of each tenant that wait in the lane `batch` |
| `depth` | hash | lines admitted and not ended, of all and of each tenant |
| `held` | string | lines of batches that were not cleaned up, ended ones too: what takes memory |
| `batch:<id>` | hash | the batch: status, counts, times, the fence of its steward |
| `batches:<tenant>` | sorted set | ids by time of creation, for lists with cursors |
| `files:<tenant>` | sorted set | likewise |
| `care` | sorted set | batches by the time (ms) when a steward must look at them next |
| `file:<id>` | hash | what is known of a file; its bytes are on the volume |
| `blob:<sha256>` | set | ids of files and batches that need these bytes |
| `expiries` | sorted set | files by the time (s) when they are deleted |
| `idem:<tenant>:<key>` | hash | the batch that it made, and the digest of that request |
| `solo` | string | the worker that empties its batch to run suspect lines alone |
| `workers` | sorted set | workers by their last beat (ms) |
| `dead` | stream | lines that killed their worker when run alone |
| `reaped` | string | when (ms) lines were last taken back from those who are silent |
| `grace` | string | Redis was away: who is silent is not dead yet |
| `stats` | hash | counters: lease_lost, redelivered, stale_results, dead |
| `sweeping` | string | the volume was swept, or is being swept, not long ago |
| `volume` | string | mark of the volume that holds the bytes |
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "vq:{v}:"
GROUP: Final = "g"

LANE_SUSPECT: Final = "suspect"
LANE_RETRY: Final = "retry"
LANE_BATCH: Final = "batch"
# In order of claiming: what may be poison is settled first, what was begun before goes next.
LANES: Final = (LANE_SUSPECT, LANE_RETRY, LANE_BATCH)

# A tenant's lines that wait in the lane: another tenant waits behind at most this many of each.
WINDOW: Final = 64
# Long enough for a pause of the process or of Redis, short enough that work moves on soon.
LEASE_MS: Final = 30_000
# Six beats to a lease: five may fail in a row.
BEAT_SECONDS: Final = 5.0
# The lease on running alone outlives the lease on the line that is run.
SOLO_LEASES: Final = 3
# A line that took its worker down twice with nobody beside it is the cause.
MAX_SOLO_CRASHES: Final = 2
# OpenAI's clients repeat a request within minutes; a day also covers a queue that retries.
IDEMPOTENCY_SECONDS: Final = 24 * 3600
# The output file says everything; the job stays a while for whoever asks what happened. Memory
# is not counted for it any more, so not for long.
ENDED_JOB_SECONDS: Final = 600
# Batches and the files they made, unless the request says how long.
RETENTION_SECONDS: Final = 30 * 24 * 3600
# A consumer without pending entries is only a name; it is removed after this silence.
CONSUMER_IDLE_MS: Final = 10 * 60_000
# OpenAI's bounds of `expires_after` and `output_expires_after`.
MIN_EXPIRY_SECONDS: Final = 3600
MAX_EXPIRY_SECONDS: Final = RETENTION_SECONDS
# The volume is listed at most this often, by one process; garbage may wait that long.
SWEEP_SECONDS: Final = 300
# Between bytes on the volume and the record that needs them lies one script; this is far longer.
GRACE_SECONDS: Final = 600
# An upload may pause between two writes; then its draft looks like one whose writer died.
DRAFT_SECONDS: Final = 3600


def key(*parts: str) -> str:
    """`key("job", id)` is the name of that job's hash."""
    return PREFIX + ":".join(parts)
