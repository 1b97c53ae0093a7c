"""What the rows of one shard say of commands and orders that are final: it stays so, as long as they are remembered."""

from schemas.codec import Decoder
from schemas.messages import AccountRow
from streams.clearing.command_states import FINAL_COMMANDS

_ROW = Decoder[AccountRow](AccountRow)


class CommandEnds:
    """How the commands and orders of each account have ended, by its last row."""

    def __init__(self) -> None:
        self._ends: dict[str, dict[str, str]] = {}

    def see(self, account: str, data: bytes | None) -> list[str]:
        """A row of ``account`` has been committed (None: it is gone); what it says is other than final was before."""
        before, now, differences = self._ends.get(account, {}), dict[str, str](), list[str]()
        for group in () if data is None else _ROW(data).groups:
            for command in (*([] if group.command is None else [group.command]), *(group.ended or ())):
                statuses = [(order.order_id, str(order.status)) for order in command.orders]
                for name, status in ((command.command_id, str(command.status)), *statuses):
                    was = before.get(name, status)
                    if status != was and (was, status) != ("expired", "superseded"):
                        differences.append(f"{name} was {was} and is {status}")
                    if status in FINAL_COMMANDS:
                        now[name] = status
        self._ends[account] = now
        return differences
