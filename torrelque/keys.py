"""The only place where a Redis key or channel of a queue is spelled."""

from __future__ import annotations

#: The documented table: the name of each structure, without the queue's prefix.
NAMES = {
    "pending": "pending",
    "dequeueing": "dequeueing",
    "undequeued": "undequeued",
    "working": "working",
    "delayed": "delayed",
    "tasks": "tasks",
    "task": "task",
}


class Keys:
    """The keys of one queue as bytes, ready to be sent.

    :param queue: name of the queue
    :param cluster: wrap the name in braces (unless it has some), so that the whole queue is one hash slot
    """

    def __init__(self, queue: str, *, cluster: bool = False) -> None:
        prefix = f"{{{queue}}}" if cluster and "{" not in queue else queue
        self.names = {name: f"{prefix}:{suffix}" for name, suffix in NAMES.items()}
        self.pending = self.names["pending"].encode()
        self.dequeueing = self.names["dequeueing"].encode()
        self.undequeued = self.names["undequeued"].encode()
        self.working = self.names["working"].encode()
        self.delayed = self.names["delayed"].encode()
        self.tasks = self.names["tasks"].encode()
        self.task = self.names["task"].encode()
        #: What the sweep before last saw in ``dequeueing``; lives only while a sweep runs.
        self.outgoing = self.undequeued + b":outgoing"
        #: Tasks that were given up, by the time of it, and their payloads: what is live is never here.
        self.dead = f"{prefix}:dead".encode()
        self.dead_payloads = self.dead + b":payloads"
        #: Scripts say here that the next due or stale time has moved closer.
        self.wake = f"{prefix}:wake".encode()
        #: Written, and forgotten in a second, to have something to wait for; only where more than memory is asked for.
        self.durable = f"{prefix}:durable".encode()

    def state(self, task_id: bytes) -> bytes:
        """Spell the key of one task's state."""
        return b"%b:%b" % (self.task, task_id)

    def state_events(self, task_id: bytes, db: int) -> bytes:
        """Spell the keyspace channel of one task's state."""
        return b"__keyspace@%d__:%b" % (db, self.state(task_id))
