import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_STATUS_UNSPECIFIED: _ClassVar[TaskStatus]
    TASK_STATUS_PENDING: _ClassVar[TaskStatus]
    TASK_STATUS_WORKING: _ClassVar[TaskStatus]
    TASK_STATUS_DELAYED: _ClassVar[TaskStatus]
    TASK_STATUS_COMPLETED: _ClassVar[TaskStatus]
    TASK_STATUS_REJECTED: _ClassVar[TaskStatus]

class DisconnectPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISCONNECT_POLICY_UNSPECIFIED: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_KEEP_LEASE: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_REQUEUE: _ClassVar[DisconnectPolicy]
TASK_STATUS_UNSPECIFIED: TaskStatus
TASK_STATUS_PENDING: TaskStatus
TASK_STATUS_WORKING: TaskStatus
TASK_STATUS_DELAYED: TaskStatus
TASK_STATUS_COMPLETED: TaskStatus
TASK_STATUS_REJECTED: TaskStatus
DISCONNECT_POLICY_UNSPECIFIED: DisconnectPolicy
DISCONNECT_POLICY_KEEP_LEASE: DisconnectPolicy
DISCONNECT_POLICY_REQUEUE: DisconnectPolicy

class Payload(_message.Message):
    __slots__ = ("data", "content_type")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    content_type: str
    def __init__(self, data: _Optional[bytes] = ..., content_type: _Optional[str] = ...) -> None: ...

class TaskState(_message.Message):
    __slots__ = ("status", "timeout", "result", "dequeue_count", "requeue_count", "enqueue_time", "last_dequeue_time", "last_requeue_time", "release_time")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DEQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ENQUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_DEQUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_REQUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    RELEASE_TIME_FIELD_NUMBER: _ClassVar[int]
    status: TaskStatus
    timeout: _duration_pb2.Duration
    result: Payload
    dequeue_count: int
    requeue_count: int
    enqueue_time: _timestamp_pb2.Timestamp
    last_dequeue_time: _timestamp_pb2.Timestamp
    last_requeue_time: _timestamp_pb2.Timestamp
    release_time: _timestamp_pb2.Timestamp
    def __init__(self, status: _Optional[_Union[TaskStatus, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., result: _Optional[_Union[Payload, _Mapping]] = ..., dequeue_count: _Optional[int] = ..., requeue_count: _Optional[int] = ..., enqueue_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_dequeue_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_requeue_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., release_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "payload", "dequeue_count", "timeout")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    DEQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    payload: Payload
    dequeue_count: int
    timeout: _duration_pb2.Duration
    def __init__(self, task_id: _Optional[str] = ..., payload: _Optional[_Union[Payload, _Mapping]] = ..., dequeue_count: _Optional[int] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("task_id", "payload", "reason", "dequeue_count", "requeue_count", "enqueue_time", "last_dequeue_time", "last_requeue_time", "release_time")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ENQUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_DEQUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_REQUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    RELEASE_TIME_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    payload: Payload
    reason: Payload
    dequeue_count: int
    requeue_count: int
    enqueue_time: _timestamp_pb2.Timestamp
    last_dequeue_time: _timestamp_pb2.Timestamp
    last_requeue_time: _timestamp_pb2.Timestamp
    release_time: _timestamp_pb2.Timestamp
    def __init__(self, task_id: _Optional[str] = ..., payload: _Optional[_Union[Payload, _Mapping]] = ..., reason: _Optional[_Union[Payload, _Mapping]] = ..., dequeue_count: _Optional[int] = ..., requeue_count: _Optional[int] = ..., enqueue_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_dequeue_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_requeue_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., release_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TaskSpec(_message.Message):
    __slots__ = ("payload", "task_timeout", "delay", "request_id")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TASK_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    payload: Payload
    task_timeout: _duration_pb2.Duration
    delay: _duration_pb2.Duration
    request_id: str
    def __init__(self, payload: _Optional[_Union[Payload, _Mapping]] = ..., task_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class EnqueueRequest(_message.Message):
    __slots__ = ("queue", "task")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    queue: str
    task: TaskSpec
    def __init__(self, queue: _Optional[str] = ..., task: _Optional[_Union[TaskSpec, _Mapping]] = ...) -> None: ...

class EnqueueResponse(_message.Message):
    __slots__ = ("task_id", "deduplicated")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DEDUPLICATED_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    deduplicated: bool
    def __init__(self, task_id: _Optional[str] = ..., deduplicated: bool = ...) -> None: ...

class BatchEnqueueRequest(_message.Message):
    __slots__ = ("queue", "tasks")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    queue: str
    tasks: _containers.RepeatedCompositeFieldContainer[TaskSpec]
    def __init__(self, queue: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[TaskSpec, _Mapping]]] = ...) -> None: ...

class BatchEnqueueResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[EnqueueResponse]
    def __init__(self, results: _Optional[_Iterable[_Union[EnqueueResponse, _Mapping]]] = ...) -> None: ...

class DequeueRequest(_message.Message):
    __slots__ = ("queue", "max_tasks", "timeout", "worker_id")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_TASKS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    queue: str
    max_tasks: int
    timeout: _duration_pb2.Duration
    worker_id: str
    def __init__(self, queue: _Optional[str] = ..., max_tasks: _Optional[int] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., worker_id: _Optional[str] = ...) -> None: ...

class DequeueResponse(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ...) -> None: ...

class ExtendLeaseRequest(_message.Message):
    __slots__ = ("queue", "task_id", "dequeue_count", "task_timeout")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DEQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    TASK_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    queue: str
    task_id: str
    dequeue_count: int
    task_timeout: _duration_pb2.Duration
    def __init__(self, queue: _Optional[str] = ..., task_id: _Optional[str] = ..., dequeue_count: _Optional[int] = ..., task_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ExtendLeaseResponse(_message.Message):
    __slots__ = ("stale_time",)
    STALE_TIME_FIELD_NUMBER: _ClassVar[int]
    stale_time: _timestamp_pb2.Timestamp
    def __init__(self, stale_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RequeueRequest(_message.Message):
    __slots__ = ("queue", "task_id", "delay", "task_timeout", "dequeue_count")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    TASK_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    DEQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    queue: str
    task_id: str
    delay: _duration_pb2.Duration
    task_timeout: _duration_pb2.Duration
    dequeue_count: int
    def __init__(self, queue: _Optional[str] = ..., task_id: _Optional[str] = ..., delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., task_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., dequeue_count: _Optional[int] = ...) -> None: ...

class RequeueResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("queue", "task_id", "result", "result_ttl", "status", "dequeue_count", "dead_letter")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RESULT_TTL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DEQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    queue: str
    task_id: str
    result: Payload
    result_ttl: _duration_pb2.Duration
    status: TaskStatus
    dequeue_count: int
    dead_letter: bool
    def __init__(self, queue: _Optional[str] = ..., task_id: _Optional[str] = ..., result: _Optional[_Union[Payload, _Mapping]] = ..., result_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., status: _Optional[_Union[TaskStatus, str]] = ..., dequeue_count: _Optional[int] = ..., dead_letter: bool = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Settlement(_message.Message):
    __slots__ = ("task_id", "dequeue_count", "release", "requeue", "extend")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DEQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    REQUEUE_FIELD_NUMBER: _ClassVar[int]
    EXTEND_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    dequeue_count: int
    release: ReleaseAction
    requeue: RequeueAction
    extend: ExtendAction
    def __init__(self, task_id: _Optional[str] = ..., dequeue_count: _Optional[int] = ..., release: _Optional[_Union[ReleaseAction, _Mapping]] = ..., requeue: _Optional[_Union[RequeueAction, _Mapping]] = ..., extend: _Optional[_Union[ExtendAction, _Mapping]] = ...) -> None: ...

class ReleaseAction(_message.Message):
    __slots__ = ("result", "result_ttl", "status", "dead_letter")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RESULT_TTL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    result: Payload
    result_ttl: _duration_pb2.Duration
    status: TaskStatus
    dead_letter: bool
    def __init__(self, result: _Optional[_Union[Payload, _Mapping]] = ..., result_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., status: _Optional[_Union[TaskStatus, str]] = ..., dead_letter: bool = ...) -> None: ...

class RequeueAction(_message.Message):
    __slots__ = ("delay", "task_timeout")
    DELAY_FIELD_NUMBER: _ClassVar[int]
    TASK_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    delay: _duration_pb2.Duration
    task_timeout: _duration_pb2.Duration
    def __init__(self, delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., task_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ExtendAction(_message.Message):
    __slots__ = ("task_timeout",)
    TASK_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    task_timeout: _duration_pb2.Duration
    def __init__(self, task_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("index", "code", "reason", "message", "status", "dequeue_count")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DEQUEUE_COUNT_FIELD_NUMBER: _ClassVar[int]
    index: int
    code: int
    reason: str
    message: str
    status: TaskStatus
    dequeue_count: int
    def __init__(self, index: _Optional[int] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., status: _Optional[_Union[TaskStatus, str]] = ..., dequeue_count: _Optional[int] = ...) -> None: ...

class BatchReleaseRequest(_message.Message):
    __slots__ = ("queue", "settlements")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    SETTLEMENTS_FIELD_NUMBER: _ClassVar[int]
    queue: str
    settlements: _containers.RepeatedCompositeFieldContainer[Settlement]
    def __init__(self, queue: _Optional[str] = ..., settlements: _Optional[_Iterable[_Union[Settlement, _Mapping]]] = ...) -> None: ...

class BatchReleaseResponse(_message.Message):
    __slots__ = ("errors",)
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    errors: _containers.RepeatedCompositeFieldContainer[ItemError]
    def __init__(self, errors: _Optional[_Iterable[_Union[ItemError, _Mapping]]] = ...) -> None: ...

class GetTaskStateRequest(_message.Message):
    __slots__ = ("queue", "task_id")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    queue: str
    task_id: str
    def __init__(self, queue: _Optional[str] = ..., task_id: _Optional[str] = ...) -> None: ...

class GetTaskStateResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: TaskState
    def __init__(self, state: _Optional[_Union[TaskState, _Mapping]] = ...) -> None: ...

class GetQueueStatsRequest(_message.Message):
    __slots__ = ("queue",)
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    queue: str
    def __init__(self, queue: _Optional[str] = ...) -> None: ...

class GetQueueStatsResponse(_message.Message):
    __slots__ = ("tasks", "pending", "working", "delayed", "dead_letters")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    WORKING_FIELD_NUMBER: _ClassVar[int]
    DELAYED_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    tasks: int
    pending: int
    working: int
    delayed: int
    dead_letters: int
    def __init__(self, tasks: _Optional[int] = ..., pending: _Optional[int] = ..., working: _Optional[int] = ..., delayed: _Optional[int] = ..., dead_letters: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("queue", "task_id", "timeout", "cursor", "progress_interval")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    queue: str
    task_id: str
    timeout: _duration_pb2.Duration
    cursor: WatchCursor
    progress_interval: _duration_pb2.Duration
    def __init__(self, queue: _Optional[str] = ..., task_id: _Optional[str] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cursor: _Optional[_Union[WatchCursor, _Mapping]] = ..., progress_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WatchCursor(_message.Message):
    __slots__ = ("revision", "status")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    status: TaskStatus
    def __init__(self, revision: _Optional[int] = ..., status: _Optional[_Union[TaskStatus, str]] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("state", "cursor")
    STATE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    state: TaskState
    cursor: WatchCursor
    def __init__(self, state: _Optional[_Union[TaskState, _Mapping]] = ..., cursor: _Optional[_Union[WatchCursor, _Mapping]] = ...) -> None: ...

class ConsumeRequest(_message.Message):
    __slots__ = ("open", "credit", "settle")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    SETTLE_FIELD_NUMBER: _ClassVar[int]
    open: ConsumeOpen
    credit: ConsumeCredit
    settle: ConsumeSettle
    def __init__(self, open: _Optional[_Union[ConsumeOpen, _Mapping]] = ..., credit: _Optional[_Union[ConsumeCredit, _Mapping]] = ..., settle: _Optional[_Union[ConsumeSettle, _Mapping]] = ...) -> None: ...

class ConsumeOpen(_message.Message):
    __slots__ = ("queue", "worker_id", "max_outstanding_tasks", "max_outstanding_bytes", "disconnect_policy", "progress_interval")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTSTANDING_TASKS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTSTANDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISCONNECT_POLICY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    queue: str
    worker_id: str
    max_outstanding_tasks: int
    max_outstanding_bytes: int
    disconnect_policy: DisconnectPolicy
    progress_interval: _duration_pb2.Duration
    def __init__(self, queue: _Optional[str] = ..., worker_id: _Optional[str] = ..., max_outstanding_tasks: _Optional[int] = ..., max_outstanding_bytes: _Optional[int] = ..., disconnect_policy: _Optional[_Union[DisconnectPolicy, str]] = ..., progress_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ConsumeCredit(_message.Message):
    __slots__ = ("max_outstanding_tasks",)
    MAX_OUTSTANDING_TASKS_FIELD_NUMBER: _ClassVar[int]
    max_outstanding_tasks: int
    def __init__(self, max_outstanding_tasks: _Optional[int] = ...) -> None: ...

class ConsumeSettle(_message.Message):
    __slots__ = ("sequence", "settlements")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SETTLEMENTS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    settlements: _containers.RepeatedCompositeFieldContainer[Settlement]
    def __init__(self, sequence: _Optional[int] = ..., settlements: _Optional[_Iterable[_Union[Settlement, _Mapping]]] = ...) -> None: ...

class ConsumeResponse(_message.Message):
    __slots__ = ("opened", "delivery", "settled", "draining", "progress")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    opened: ConsumeOpened
    delivery: ConsumeDelivery
    settled: ConsumeSettled
    draining: ConsumeDraining
    progress: ConsumeProgress
    def __init__(self, opened: _Optional[_Union[ConsumeOpened, _Mapping]] = ..., delivery: _Optional[_Union[ConsumeDelivery, _Mapping]] = ..., settled: _Optional[_Union[ConsumeSettled, _Mapping]] = ..., draining: _Optional[_Union[ConsumeDraining, _Mapping]] = ..., progress: _Optional[_Union[ConsumeProgress, _Mapping]] = ...) -> None: ...

class ConsumeOpened(_message.Message):
    __slots__ = ("consumer_id", "max_outstanding_tasks")
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTSTANDING_TASKS_FIELD_NUMBER: _ClassVar[int]
    consumer_id: str
    max_outstanding_tasks: int
    def __init__(self, consumer_id: _Optional[str] = ..., max_outstanding_tasks: _Optional[int] = ...) -> None: ...

class ConsumeDelivery(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ...) -> None: ...

class ConsumeSettled(_message.Message):
    __slots__ = ("sequence", "errors")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    errors: _containers.RepeatedCompositeFieldContainer[ItemError]
    def __init__(self, sequence: _Optional[int] = ..., errors: _Optional[_Iterable[_Union[ItemError, _Mapping]]] = ...) -> None: ...

class ConsumeDraining(_message.Message):
    __slots__ = ("grace",)
    GRACE_FIELD_NUMBER: _ClassVar[int]
    grace: _duration_pb2.Duration
    def __init__(self, grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ConsumeProgress(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SweepRequest(_message.Message):
    __slots__ = ("queue",)
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    queue: str
    def __init__(self, queue: _Optional[str] = ...) -> None: ...

class SweepResponse(_message.Message):
    __slots__ = ("stale", "due", "undequeued")
    STALE_FIELD_NUMBER: _ClassVar[int]
    DUE_FIELD_NUMBER: _ClassVar[int]
    UNDEQUEUED_FIELD_NUMBER: _ClassVar[int]
    stale: int
    due: int
    undequeued: int
    def __init__(self, stale: _Optional[int] = ..., due: _Optional[int] = ..., undequeued: _Optional[int] = ...) -> None: ...

class ScheduleSweepRequest(_message.Message):
    __slots__ = ("queue", "interval")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    queue: str
    interval: _duration_pb2.Duration
    def __init__(self, queue: _Optional[str] = ..., interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ScheduleSweepResponse(_message.Message):
    __slots__ = ("server_instance_id",)
    SERVER_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    server_instance_id: str
    def __init__(self, server_instance_id: _Optional[str] = ...) -> None: ...

class UnscheduleSweepRequest(_message.Message):
    __slots__ = ("queue",)
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    queue: str
    def __init__(self, queue: _Optional[str] = ...) -> None: ...

class UnscheduleSweepResponse(_message.Message):
    __slots__ = ("server_instance_id",)
    SERVER_INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    server_instance_id: str
    def __init__(self, server_instance_id: _Optional[str] = ...) -> None: ...

class ListDeadLettersRequest(_message.Message):
    __slots__ = ("queue", "max_letters", "page_token")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_LETTERS_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    queue: str
    max_letters: int
    page_token: str
    def __init__(self, queue: _Optional[str] = ..., max_letters: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDeadLettersResponse(_message.Message):
    __slots__ = ("letters", "next_page_token")
    LETTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    letters: _containers.RepeatedCompositeFieldContainer[DeadLetter]
    next_page_token: str
    def __init__(self, letters: _Optional[_Iterable[_Union[DeadLetter, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RequeueDeadLettersRequest(_message.Message):
    __slots__ = ("queue", "task_ids", "all")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    queue: str
    task_ids: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    def __init__(self, queue: _Optional[str] = ..., task_ids: _Optional[_Iterable[str]] = ..., all: bool = ...) -> None: ...

class RequeueDeadLettersResponse(_message.Message):
    __slots__ = ("requeued",)
    REQUEUED_FIELD_NUMBER: _ClassVar[int]
    requeued: int
    def __init__(self, requeued: _Optional[int] = ...) -> None: ...

class PurgeDeadLettersRequest(_message.Message):
    __slots__ = ("queue", "task_ids", "all")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    queue: str
    task_ids: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    def __init__(self, queue: _Optional[str] = ..., task_ids: _Optional[_Iterable[str]] = ..., all: bool = ...) -> None: ...

class PurgeDeadLettersResponse(_message.Message):
    __slots__ = ("purged",)
    PURGED_FIELD_NUMBER: _ClassVar[int]
    purged: int
    def __init__(self, purged: _Optional[int] = ...) -> None: ...
