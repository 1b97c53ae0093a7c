"""An in-memory group coordinator of classic groups under the cooperative-sticky protocol.

A rebalance has Kafka's two phases: every member rejoins (in the background, unless a rebalance callback still waits for
its application), then all get a new generation and their assignments. What moves is first taken from its old owner,
whose callback and second rejoining let the new owner have it.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from confluent_kafka import KafkaError

from streams.memory.scheduler import Process, Scheduler

Place = tuple[str, int]

REBALANCE_TIMEOUT_US = 700_000
"""How long members may take to rejoin (``max.poll.interval.ms``)."""
HEARTBEAT_US = 40_000


class GroupClient(Protocol):
    """What the coordinator needs of a consumer."""

    process: Process
    instance: str
    topics: list[str]
    closed: bool

    def owned(self) -> set[Place]:
        """The partitions that the application has been given."""

    def busy(self) -> bool:
        """Whether a rebalance callback waits or runs: it rejoins only afterwards."""

    def rejoin_later(self) -> None:
        """Rejoin as soon as it is not busy any more."""

    def settled(self) -> bool:
        """Whether it owns exactly what it was given."""

    def joined(self, member: str, generation: int) -> None:
        """The answer to joining."""

    def assigned(self, member: str, generation: int, places: set[Place]) -> None:
        """The answer to syncing."""

    def lose(self, member: str, *, fenced: bool = False) -> None:
        """The heartbeat says that the group does not know the member any more."""


class Member:
    """A member as the coordinator knows it."""

    __slots__ = ("assignment", "client", "id", "in_phase", "instance", "reported")

    def __init__(self, member_id: str, client: GroupClient) -> None:
        self.id = member_id
        self.client = client
        self.instance = client.instance
        self.in_phase = True
        self.reported: set[Place] = set()
        self.assignment: set[Place] = set()


class GroupCoordinator:
    """One consumer group."""

    def __init__(self, scheduler: Scheduler, name: str, partitions: Mapping[str, int]) -> None:
        self.scheduler = scheduler
        self.name = name
        self.members: dict[str, Member] = {}
        self.generation = 0
        self.session_us = 0
        self._partitions = dict(partitions)
        self._preparing = False
        self._phase = 0
        self._numbers = 0

    # --- what producers ask ------------------------------------------------------------------------------------------

    def refuses(self, member: str, generation: int, instance: str) -> int | None:
        """The error code with which transactional offsets of a member are refused, if they are.

        Offsets that name neither a member nor a generation nor an instance are taken unchecked.
        """
        if not member and generation < 0 and not instance:
            return None
        if member not in self.members:
            replaced = instance and any(other.instance == instance for other in self.members.values())
            return int(KafkaError.FENCED_INSTANCE_ID if replaced else KafkaError.UNKNOWN_MEMBER_ID)
        return None if generation == self.generation else int(KafkaError.ILLEGAL_GENERATION)

    # --- what consumers do -------------------------------------------------------------------------------------------

    def join(self, client: GroupClient, member_id: str) -> None:
        """A consumer (re)joins; ``member_id`` is empty for one that is no member."""
        if client.closed:
            return
        member = self.members.get(member_id)
        if member is not None:
            member.reported = client.owned()
            member.in_phase = True
            if not self._preparing:
                self._prepare(member)
            self._complete_if_all()
            return
        if member_id:
            client.lose(member_id)
            return
        self._numbers += 1
        member = Member(f"{client.process.name}#{self._numbers}", client)
        old = self._static(client.instance)
        self.members[member.id] = member
        if old is not None:
            self._replace(old, member)
            return
        self.scheduler.note(self.name, f"{member.id} joins")
        if not self._preparing:
            self._prepare(member)
        self._complete_if_all()

    def leave(self, member_id: str) -> None:
        """A member leaves, or is expelled."""
        if self.members.pop(member_id, None) is None:
            return
        self.scheduler.note(self.name, f"{member_id} leaves")
        if not self._preparing and self.members:
            self._prepare(None)
        self._complete_if_all()

    def unowned(self) -> list[Place]:
        """The partitions that no member has, and that no rebalance in progress will give to one.

        That is possible: a static member that dies between learning what to give up and rejoining is replaced in the
        same generation by one that owns nothing it would have to give up, so nobody asks for the second rebalance.
        """
        if self._preparing or any(not client.settled() for client in self._clients()):
            return []
        assigned = {place for member in self.members.values() for place in member.assignment}
        topics = {topic for client in self._clients() for topic in client.topics}
        return sorted({(topic, number) for topic in topics for number in self._numbers_of(topic)} - assigned)

    def grow(self, topic: str, count: int) -> None:
        """A topic has more partitions by now: its members see that and join again."""
        self._partitions[topic] = count
        if self.members:
            self.rebalance()

    def rebalance(self) -> None:
        """What an operator brings about by stopping a member for longer than its session."""
        if not self._preparing and self.members:
            self._prepare(None)

    def _clients(self) -> list[GroupClient]:
        return [member.client for member in self.members.values()]

    def watch(self, process: Process) -> None:
        """Expel the members of a process that does not heartbeat any more, a session timeout from when it stopped."""
        delay = max(0, process.silent_since + self.session_us - self.scheduler.now)
        self.scheduler.after(delay + self.scheduler.random.randrange(20_000), lambda: self._check(process))

    def _check(self, process: Process) -> None:
        now = self.scheduler.now
        silent = process.dead or process.silent_until > now
        if not silent or now - process.silent_since < self.session_us:
            return
        for member in [member for member in self.members.values() if member.client.process is process]:
            self.scheduler.note(self.name, f"{member.id} expelled")
            self.leave(member.id)
            self._tell_lost(member)

    def _tell_lost(self, member: Member, *, fenced: bool = False) -> None:
        """The client's next heartbeat says so; one that was only cut off counts the session by itself."""
        client = member.client
        delay = max(0, client.process.frozen_until - self.scheduler.now) + self.scheduler.random.randrange(HEARTBEAT_US)
        self.background(client, delay, lambda: client.lose(member.id, fenced=fenced), cut_matters=False)

    def _static(self, instance: str) -> Member | None:
        return next((member for member in self.members.values() if instance and member.instance == instance), None)

    def _replace(self, old: Member, member: Member) -> None:
        """A static member comes back: it gets what it had, in the same generation, and the old one is fenced."""
        del self.members[old.id]
        self.scheduler.note(self.name, f"{member.id} replaces {old.id}")
        self._tell_lost(old, fenced=True)
        member.assignment = old.assignment
        if self._preparing:
            self._complete_if_all()
        else:
            self._answer(member)

    # --- rebalancing -------------------------------------------------------------------------------------------------

    def _prepare(self, first: Member | None) -> None:
        self._preparing = True
        self._phase += 1
        phase = self._phase
        for member in self.members.values():
            if member is first:
                continue
            member.in_phase = False
            self._call_back(member, phase)
        self.scheduler.after(REBALANCE_TIMEOUT_US, lambda: self._expire(phase))

    def _call_back(self, member: Member, phase: int) -> None:
        def heartbeat() -> None:
            if not self._preparing or self._phase != phase or member.id not in self.members or member.in_phase:
                return
            if member.client.busy():
                member.client.rejoin_later()
            else:
                self.join(member.client, member.id)

        self.background(member.client, self.scheduler.random.randrange(HEARTBEAT_US), heartbeat)

    def _expire(self, phase: int) -> None:
        if not self._preparing or self._phase != phase:
            return
        for member in [member for member in self.members.values() if not member.in_phase]:
            self.scheduler.note(self.name, f"{member.id} did not rejoin")
            del self.members[member.id]
            self._tell_lost(member)
        self._complete_if_all()

    def _complete_if_all(self) -> None:
        if not self._preparing or not all(member.in_phase for member in self.members.values()):
            return
        self._preparing = False
        self.generation += 1
        self._assign()
        self.scheduler.note(
            self.name,
            f"generation {self.generation} "
            + " ".join(f"{member.id}={sorted(member.assignment)}" for member in self.members.values()),
        )
        for member in self.members.values():
            self._answer(member)

    def _answer(self, member: Member) -> None:
        generation = self.generation

        def joined() -> None:
            if member.id in self.members and generation == self.generation:
                member.client.joined(member.id, generation)
                self.background(member.client, self.scheduler.random.randrange(8_000), synced)

        def synced() -> None:
            if member.id in self.members and generation == self.generation and not self._preparing:
                member.client.assigned(member.id, generation, set(member.assignment))

        self.background(member.client, self.scheduler.random.randrange(5_000), joined)

    def _assign(self) -> None:
        """Balance, moving as little as possible; what another member still has is not given away yet."""
        members = [self.members[name] for name in sorted(self.members)]
        if not members:
            return
        places = sorted((topic, number) for topic in members[0].client.topics for number in self._numbers_of(topic))
        owner: dict[Place, Member] = {}
        for member in members:
            for place in sorted(member.reported):
                owner.setdefault(place, member)
        least, more = divmod(len(places), len(members))
        kept: dict[str, list[Place]] = {member.id: [] for member in members}
        free = []
        for place in places:
            held = owner.get(place)
            mine = None if held is None else kept[held.id]
            if mine is None or len(mine) > least or (len(mine) == least and more <= 0):
                free.append(place)
                continue
            if len(mine) == least:
                more -= 1
            mine.append(place)
        for place in free:
            fewest = min(kept, key=lambda name: (len(kept[name]), name))
            kept[fewest].append(place)
        for member in members:
            member.assignment = {place for place in kept[member.id] if owner.get(place, member) is member}

    def _numbers_of(self, topic: str) -> range:
        return range(self._partitions[topic])

    def background(
        self, client: GroupClient, delay_us: int, action: Callable[[], None], *, cut_matters: bool = True
    ) -> None:
        """Do something in the client's background thread, which does nothing while its process is frozen or dead."""
        process = client.process

        def run() -> None:
            if process.dead or client.closed:
                return
            until = process.silent_until if cut_matters else process.frozen_until
            if until > self.scheduler.now:
                self.scheduler.after(until - self.scheduler.now + self.scheduler.random.randrange(HEARTBEAT_US), run)
            else:
                action()

        self.scheduler.after(delay_us, run)
