"""What the queue guarantees, one function for each guarantee; each mutant must violate one."""

from tests.jobs.contracts import admission as admission
from tests.jobs.contracts import batches as batches
from tests.jobs.contracts import cancellation as cancellation
from tests.jobs.contracts import leases as leases
from tests.jobs.contracts import servers as servers
from tests.jobs.contracts import suspects as suspects
from tests.jobs.contracts.contract import CONTRACTS as CONTRACTS
from tests.jobs.contracts.contract import Contract as Contract
