"""``python -m tests.faults.worker ROLE ORDERS``: a role as ``margin-clearing ROLE`` starts it, with ambushes laid.

ORDERS is the file that says where it is to die or to stop (:mod:`tests.faults.points`); it need not exist. SIGUSR2 has
it write where each of its threads is.
"""

import faulthandler
import signal
import sys
from pathlib import Path

from streams.cli import main
from tests.faults.points import LISTENING, Ambush, lay


def run(role: str, orders: Path) -> None:
    ambush = Ambush(orders)
    signal.signal(signal.SIGUSR1, ambush.read)
    faulthandler.register(signal.SIGUSR2)
    lay(ambush, role)
    print(LISTENING, file=sys.stderr, flush=True)
    sys.argv = ["margin-clearing", role]
    main()


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
