"""The planted bugs: the weaknesses of the published package, planted into this library, and some of our own making.

U36 (settings of the server) and U38 (its tests) are no faults of code that could be planted.
"""

from __future__ import annotations

import math

from .planting import Bug, constant, in_python, in_script

WEAKNESSES = "tests/weaknesses/"
U01, U11, U21 = (f"{WEAKNESSES}{name}.py::" for name in ("test_u01_u10", "test_u11_u20", "test_u21_u38"))

_WEAKNESSES = (
    Bug(
        "u01-two-step-claim",
        "An id that was caught for a caller who left meanwhile stays in `dequeueing`",
        [
            in_python(
                "torrelque.waiting:Room._look",
                "self._returns += [(task_id, None) for task_id in caught]",
                "pass",
            )
        ],
    ),
    Bug(
        "u02-bad-lease",
        "A stored lease that is no number fails the claim half-way",
        [
            in_script(
                "head",
                "  if seconds and seconds > 0 and seconds < 1e10 then\n    return seconds\n  end\n"
                "  return tonumber(default)",
                "  return seconds or stored",
            )
        ],
        [
            U11 + "test_u17_every_delivery_is_counted_and_told",
            U01 + "test_u02_a_stored_lease_that_is_no_time_means_the_default",
        ],
    ),
    Bug(
        "u03-producer-half-way",
        "An id whose payload is not stored yet is dropped at its first sight",
        [in_script("DEQUEUE", "redis.call('LPUSH', dequeueing, id)", "dropped[#dropped + 1] = id")],
        [U01 + "test_u03_a_producer_that_is_half_way_can_finish"],
    ),
    Bug(
        "u04-falsiness",
        "A falsy payload counts as none",
        [
            in_python(
                "torrelque.decoding:Decoder.task",
                "return task_id, self._serialiser.loads(delivery.body)",
                "return task_id, self._serialiser.loads(delivery.body) or {}['no payload']",
            )
        ],
        [U01 + "test_u04_a_falsy_payload_is_a_payload"],
    ),
    Bug(
        "u05-serialise-late",
        "A release is staged before its result is serialised",
        [
            in_python(
                "torrelque.queue:Torrelque.release",
                "    body = None if result is None",
                "    await self._settler.settle('release', task_id, self._calls.release([(task_id, None)], final,"
                " keep), pipeline, strict)\n    body = None if result is None",
            )
        ],
        [U01 + "test_u05_a_result_that_cannot_be_serialised_stages_nothing"],
    ),
    Bug(
        "u06-unbounded-unpack",
        "A sweep takes all that has ended at once, and unpacks it",
        [
            in_script(
                "promote",
                "stamp(now), 'LIMIT', 0, limit)\n",
                "stamp(now))\n  if #ids > 0 then\n    redis.call('ZSCORE', set, (select(1, unpack(ids))))\n  end\n",
            )
        ],
        [U01 + "test_u06_a_sweep_copes_with_any_backlog"],
    ),
    Bug(
        "u07-max-tasks",
        "A large `max_tasks` is not clamped, nor is the claim",
        [
            in_python("torrelque.checks:count", "0 < value <= MAX_TASKS", "0 < value"),
            constant("torrelque.waiting:CLAIM", 9000),
            constant("torrelque.calls:CLAIM_BOUND", 9000),
        ],
        [U01 + "test_u07_a_huge_max_tasks_is_clamped"],
    ),
    Bug(
        "u08-full-memory",
        "An extension adds before it removes, which a full server refuses",
        [in_script("EXTEND", "    redis.call('ZREM', working, id)\n", "")],
    ),
    Bug(
        "u09-sweep-ends",
        "A sweep that meets an error of Redis ends for ever",
        [
            in_python(
                "torrelque.sweeping:Sweeper.run",
                "except TorrelqueRedisError as error:",
                "except ZeroDivisionError as error:",
            )
        ],
    ),
    Bug(
        "u09-schedules-pile-up",
        "A second schedule leaves the first sweep running",
        [in_python("torrelque.queue:Torrelque.unschedule_sweep", "scope.cancel()", "pass")],
        [U01 + "test_u09_schedules_do_not_pile_up"],
    ),
    Bug(
        "u10-bad-neighbour",
        "Tasks beside one that cannot be read stay leased to nobody",
        [
            in_python(
                "torrelque.queue:Torrelque._decode_all",
                "self._room.hand_back(deliveries[:i] + deliveries[i + 1 :])",
                "pass",
            )
        ],
        [U01 + "test_u10_an_unreadable_payload_does_not_hurt_its_batch"],
    ),
    Bug(
        "u11-late-release",
        "A release of a task that was swept is applied",
        [in_script("RELEASE", "    return -1\n", "    return 1\n")],
    ),
    Bug(
        "u12-late-owner",
        "The delivery number is not compared",
        [in_script("settle", "if token == '' or tonumber(token) == whole(known[1]) then", "if true then")],
    ),
    Bug(
        "u13-requeued-twice",
        "A requeue does not ask whether the task is leased",
        [in_script("REQUEUE", "    return -1\n", "    return 1\n")],
    ),
    Bug(
        "u14-requeue-unknown",
        "A requeue of an unknown id makes a ghost",
        [
            in_script("REQUEUE", "  return 0\nend\nlocal soonest", "  return 1\nend\nlocal soonest"),
            in_script(
                "REQUEUE", "  if said == 1 and redis.call('HEXISTS', tasks, id) == 0 then\n    said = 0\n  end\n", ""
            ),
        ],
    ),
    Bug(
        "u15-late-result",
        "A late release with a result makes a task that waits COMPLETED",
        [
            in_script(
                "RELEASE",
                "  elseif reply[n] == 1 and keep ~= '' and result ~= '' then",
                "  elseif reply[n] ~= 0 and keep ~= '' and result ~= '' then",
            )
        ],
    ),
    Bug(
        "u16-no-extension",
        "A lease that a body holds is not extended",
        [
            in_python(
                "torrelque.leasing:_Keeper._try",
                "await self._extend(apart=apart)",
                "pass",
            )
        ],
    ),
    Bug(
        "u16-overrun",
        "A body goes on when its lease is lost",
        [in_python("torrelque.leasing:_Keeper.keep", "scope.cancel()", "pass")],
        [U11 + "test_u16_a_handler_is_cancelled_when_its_lease_is_lost"],
    ),
    Bug(
        "u17-uncounted",
        "A claim is not counted",
        [in_script("DEQUEUE", ", 'dequeue_count', count)", ")")],
    ),
    Bug(
        "u18-client-clock",
        "A sweep goes by the clock of a machine that is 301 s ahead",
        [in_script("SWEEP", "local outgoing = KEYS[8]", "local outgoing = KEYS[8]\nnow = now + 301")],
    ),
    Bug(
        "u19-adoption",
        "An adoption that finds its id gone is an error of the caller",
        [
            in_script(
                "DEQUEUE",
                "    adopted[#adopted + 1] = ARGV[i]\n",
                "    adopted[#adopted + 1] = ARGV[i]\n  else\n    return redis.error_reply('ERR no such task')\n",
            )
        ],
    ),
    Bug(
        "u20-delays-by-sweep",
        "A claim does not look for delays that are over",
        [in_script("DEQUEUE", "promote_some(delayed, math.floor(bound / 4))\n", "")],
    ),
    Bug(
        "u21-read-then-subscribe",
        "A watch reads first and subscribes second",
        [
            in_python(
                "torrelque.watching:Watcher._listen",
                "    with move_on_after",
                "    if self._last is None:\n        return\n    with move_on_after",
            ),
            in_python(
                "torrelque.listening:Hub._receive",
                "            for ear in self._ears.get(channel, ()):\n                ear.error = None\n"
                "                ear.tell()\n",
                "            pass\n",
            ),
            in_python("torrelque.listening:Hub.attach", "        ear.tell()\n", "        pass\n"),
        ],
        [U21 + "test_u21_a_release_between_two_states_is_not_missed"],
    ),
    Bug(
        "u22-busy-watch",
        "A watch looks and looks",
        [constant("torrelque.watching:REREAD", 0.0005)],
        [U21 + "test_u22_a_watch_sleeps"],
    ),
    Bug(
        "u23-notification-lost",
        "A watch relies on notifications alone",
        [constant("torrelque.watching:REREAD", math.inf)],
        ["tests/trio/test_autojump.py::test_watch_of_which_all_notifications_are_lost"],
        "",
    ),
    Bug(
        "u24-rejection-invisible",
        "A rejection with a result is kept as COMPLETED",
        [in_python("torrelque.calls:Calls.release", 'b"%d" % status', "b'3'")],
    ),
    Bug(
        "u25-no-ttl",
        "A result is kept for ever",
        [in_script("RELEASE", "    redis.call('PEXPIRE', task .. ':' .. id, keep)\n", "")],
    ),
    Bug(
        "u25-whole-seconds",
        "A result is kept for whole seconds only",
        [in_python("torrelque.calls:_milliseconds", "max(1, round(keep * 1000))", "max(1, int(keep) * 1000)")],
        [U21 + "test_u25_the_time_to_keep_a_result_is_exact_or_refused"],
    ),
    Bug(
        "u26-timeout-zero",
        "A dequeue with a timeout of 0 waits without limit",
        [
            in_python(
                "torrelque.waiting:Room.dequeue",
                "seat = Seat(wanted, room, deadline, timeout == 0,",
                "seat = Seat(wanted, room, deadline, False,",
            )
        ],
    ),
    Bug(
        "u26-endless-lease",
        "A lease without an end never comes back",
        [in_script("SWEEP", "redis.call('ZRANGEBYSCORE', working, '+inf', '+inf', 'LIMIT', 0, budget)", "{}")],
        [U21 + "test_u26_a_lease_without_an_end_gets_one"],
    ),
    Bug(
        "u27-twin",
        "An enqueue with a known id adds the task again",
        [
            in_script("ENQUEUE", "none_kept or redis.call('EXISTS', state) == 0", "true"),
            in_script("ENQUEUE", "is_new and redis.call('HSETNX', tasks, id, ARGV[at + 1]) or 0", "1"),
            in_script(
                "ENQUEUE",
                "  if reply[n] == 1 then\n",
                "  if reply[n] == 1 then\n    redis.call('HSET', tasks, id, ARGV[at + 1])\n",
            ),
        ],
    ),
    Bug(
        "u28-dead-connection",
        "A connection waits in Redis without an end, also when nobody is behind it any more",
        [constant("torrelque.catching:BLOCK", 1e6)],
    ),
    Bug(
        "u29-cancelled-watcher",
        "A watcher that leaves takes the others' subscription along",
        [
            in_python(
                "torrelque.listening:Hub.detach",
                "        if not ears:\n            del self._ears[ear.channel]",
                "        del self._ears[ear.channel]",
            )
        ],
        [U21 + "test_u29_cancelled_watchers_leave_the_others_whole"],
    ),
    Bug(
        "u30-no-hash-tag",
        "A cluster would find the keys of a queue in several slots",
        [in_python("torrelque.keys:Keys.__init__", "if cluster and", "if False and")],
        ["tests/unit/test_small.py::test_keys"],
        "",
    ),
    Bug(
        "u31-long-script",
        "A sweep touches any number of ids in one script",
        [constant("torrelque.calls:SWEEP_BOUND", 100_000)],
        [U21 + "test_u31_no_script_holds_up_the_server"],
    ),
    Bug(
        "u32-guessable-ids",
        "An id tells when it was made, and can be guessed",
        [
            in_python(
                "torrelque.queue:Torrelque.enqueue",
                "known = secrets.token_hex(16) if task_id is None",
                "known = __import__('uuid').uuid1().hex if task_id is None",
            )
        ],
        [U21 + "test_u32_ids_tell_nothing_and_cannot_be_guessed"],
    ),
    Bug(
        "u33-payloads-stay",
        "A release leaves the payload",
        [in_script("RELEASE", "  redis.call('HDEL', tasks, unpack(ended))\n", "")],
    ),
    Bug(
        "u34-only-logged",
        "A settlement that could not be applied returns as if it had been",
        [in_python("torrelque.settling:judge", "    if strict:\n", "    if False:\n")],
    ),
    Bug(
        "u34-stats",
        "The counts leave out what is being handed out",
        [in_script("STATS", "redis.call('HLEN', tasks)", "redis.call('LLEN', pending) + redis.call('ZCARD', working)")],
    ),
    Bug(
        "u35-json-only",
        "A serialiser of the user's own is not asked",
        [in_python("torrelque.codec:encode", "serialiser.dumps(value)", "JSON.dumps(value)")],
        [U21 + "test_u35_a_serialiser_of_ones_own_is_believed"],
    ),
    Bug(
        "u37-connection-per-waiter",
        "Each wish to wait opens a connection",
        [in_python("torrelque.catching:Catcher.ask", "if not self.running:", "if True:")],
    ),
)

_OURS = (
    Bug(
        "own-dropped-fence",
        "Handing back does not compare the delivery number",
        [in_script("HANDBACK", "tonumber(token) == count and ", "")],
        ["tests/scripts/test_scripts.py"],
        "valkey",
    ),
    Bug(
        "own-handed-back-twice",
        "A hand-back whose answer was lost is repeated, and takes the task from its next holder",
        [
            in_python(
                "torrelque.waiting:Room._give_back",
                "returns = [(task_id, count) for task_id, count in returns if count is None]",
                "pass",
            )
        ],
        ["tests/unit/test_waiting.py::test_handing_back_is_not_repeated_blindly"],
        "",
    ),
    Bug(
        "own-lost-hand-back",
        "What was claimed for a caller who was cancelled is kept",
        [
            in_python(
                "torrelque.waiting:Room.dequeue",
                "except BaseException:\n        self.hand_back(seat.got)\n",
                "except BaseException:\n        pass\n",
            )
        ],
        ["tests/unit/test_waiting.py::test_who_left_with_some_of_what_was_wanted"],
        "",
    ),
    Bug(
        "own-failed-claim-takes",
        "A failed claim takes from those who wait for more what they have got",
        [
            in_python(
                "torrelque.waiting:Room._claim",
                "for seat in [seat for seat in self._seats if seat.got]:",
                "for seat in []:",
            ),
            in_python(
                "torrelque.waiting:Room.dequeue",
                "if seat.error is not None:\n        self.hand_back(seat.got)\n",
                "if seat.error is not None:\n",
            ),
        ],
    ),
    Bug(
        "own-surplus-kept",
        "What was claimed for callers who have left is kept",
        [
            in_python(
                "torrelque.waiting:Room._deal",
                "self._returns += [(delivery.task_id, delivery.count) for delivery in deliveries]",
                "pass",
            )
        ],
    ),
    Bug(
        "own-too-late",
        "What was claimed is given out although its lease has ended while the answer was on its way",
        [in_python("torrelque.waiting:Room._without_ended", "if not deliveries or (", "if True or (")],
    ),
    Bug(
        "own-swapped-ends",
        "New tasks are put at the head of the queue",
        [
            in_script(
                "ENQUEUE", "redis.call('LPUSH', pending, unpack(ready))", "redis.call('RPUSH', pending, unpack(ready))"
            )
        ],
    ),
    Bug(
        "own-swapped-writes",
        "Score and id of a lease are those of neighbours",
        [
            in_script(
                "DEQUEUE",
                "leases[n + 1], leases[n + 2] = ends[seconds], id",
                "leases[n + 1], leases[n + 2] = ends[seconds], ids[1]",
            )
        ],
    ),
    Bug(
        "own-off-by-one-reply",
        "Callers who share a round trip get each other's answers",
        [
            in_python(
                "torrelque.batching:_deal",
                "left = iter(items)",
                "left = iter(items[1:] + items[:1])",
            )
        ],
    ),
    Bug(
        "own-mixed-heads",
        "Calls that differ in what is said once are joined: a rejection becomes a completion",
        [
            in_python("torrelque.batching:_alike", " or call.head != head", ""),
            in_python(
                "torrelque.batching:_join", "key = (call.script.sha1, call.head)", "key = (call.script.sha1, ())"
            ),
        ],
    ),
    Bug(
        "own-answered-and-refused",
        "A call that was answered is reported refused because one beside it could not be sent again",
        [
            in_python(
                "torrelque.drivers._scripts:_Rerun._repeat",
                "replies = [error] * len(indexes)",
                "raise error",
            )
        ],
        ["tests/unit/test_small.py"],
        "",
    ),
    Bug(
        "own-adopted-twice",
        "What was caught is adopted again and again",
        [in_python("torrelque.catching:Catcher.take", "caught, self.caught = self.caught, []", "caught = self.caught")],
    ),
    Bug(
        "own-sweep-forgets",
        "A sweep takes what was parked out of its list, and puts it nowhere",
        [in_script("SWEEP", "undequeued = undequeued + put_back(id, dropped)", "undequeued = undequeued + 1")],
    ),
    Bug(
        "own-note-lost",
        "A sweep does not note what it has seen parked",
        [in_script("SWEEP", "redis.call('SADD', KEYS[3], id)\n", "")],
    ),
    Bug(
        "own-final-changed",
        "A final state can be changed by another release",
        [
            in_script(
                "RELEASE",
                "  if known[2] or redis.call('HEXISTS', tasks, id) == 1 then",
                "  if known[2] == '3' then\n    return 1\n  end\n"
                "  if known[2] or redis.call('HEXISTS', tasks, id) == 1 then",
            )
        ],
    ),
    Bug(
        "own-wake-not-sent",
        "Nobody is told of a time that has come closer",
        [in_script("wake", "redis.pcall('PUBLISH', channel, stamp(soonest - now))", "local _ = channel")],
    ),
    Bug(
        "own-wake-not-heard",
        "Who waits is not told of a time that has come closer",
        [in_python("torrelque.catching:Catcher._listen", "if ear.error is None:", "if False:")],
        ["tests/unit/test_waiting.py::test_wake_message"],
        "",
    ),
    Bug(
        "own-watch-not-ended",
        "A watch of a task that has gone goes on",
        [
            in_python(
                "torrelque.watching:Watcher._next",
                "            return None\n",
                "            continue\n",
            )
        ],
    ),
    Bug(
        "own-both-places",
        "A delayed requeue stands in `pending` as well",
        [
            in_script(
                "REQUEUE",
                "      redis.call('ZADD', delayed, stamp(due), id)\n",
                "      redis.call('ZADD', delayed, stamp(due), id)\n      redis.call('LPUSH', pending, id)\n",
            )
        ],
    ),
    Bug(
        "own-back-to-the-tail",
        "What nobody saw goes back to the tail",
        [in_script("HANDBACK", "redis.call('RPUSH', pending, id)", "redis.call('LPUSH', pending, id)")],
    ),
    Bug(
        "own-extended-from-the-end",
        "An extension counts from the old end of the lease",
        [
            in_script(
                "EXTEND",
                "local stale = now + seconds",
                "local stale = tonumber(redis.call('ZSCORE', working, id)) + seconds",
            )
        ],
    ),
    Bug(
        "own-body-cut",
        "A payload loses its last byte when others follow",
        [in_python("torrelque.calls:_read_claim", "bodies[body_at:end]", "bodies[body_at : end - 1]")],
    ),
    Bug(
        "own-alarm-asleep",
        "The alarm for those whose time passes goes off once",
        [in_python("torrelque.waiting:Room._expire", "return self._alarm_at - now", "return math.inf")],
    ),
    Bug(
        "own-no-pause",
        "A failure is tried again without a pause",
        [in_python("torrelque.background:Outage.failed", "return delay * (0.5 + random.random() / 2)", "return 0.0")],
    ),
    Bug(
        "own-no-ping",
        "A subscription to a server that has gone without a word is kept",
        [in_python("torrelque.listening:Hub._keep_alive", "await subscriber.ping()", "pass")],
    ),
    Bug(
        "own-answer-for-another",
        "A connection whose answer was given up is used again",
        [
            in_python(
                "torrelque.drivers._coredis:CoredisDriver._ask",
                "        await self._lines.drop(line)\n",
                "        await self._lines.give_back(line)\n",
            )
        ],
        [
            "tests/drivers/test_conformance.py::test_usable_after_a_cancel",
            "tests/faults/test_network.py::test_f19_late_answers",
        ],
    ),
    Bug(
        "own-lease-from-answer",
        "A lease is believed to last from its answer on, not from its request",
        [in_python("torrelque.leasing:_Keeper._try", "asked + self._seconds", "current_time() + self._seconds")],
        ["tests/trio/test_autojump.py"],
        "",
    ),
    Bug(
        "own-one-attempt-more",
        "A task is delivered once more than it may be",
        [in_script("DEQUEUE", "elseif limit and count > limit and", "elseif limit and count > limit + 1 and")],
    ),
    Bug(
        "own-letter-lives",
        "A task that becomes a dead letter counts on as a live one",
        [
            in_script(
                "bury",
                "redis.call('HDEL', tasks, id)\n  redis.call('HSET', dead_payloads, id, payload)",
                "redis.call('HSET', dead_payloads, id, payload)",
            )
        ],
    ),
    Bug(
        "own-letter-without-payload",
        "A dead letter loses its payload",
        [in_script("bury", "redis.call('HSET', dead_payloads, id, payload)", "redis.call('HLEN', dead_payloads)")],
    ),
    Bug(
        "own-not-forgiven",
        "A dead letter that was requeued is given up at its next delivery",
        [in_script("REQUEUE_DEAD_LETTERS", "'forgiven', whole(state[1])", "'forgiven', 0")],
    ),
    Bug(
        "own-purged-too-much",
        "A purge of the dead letters that were there takes those that died meanwhile",
        [in_script("PURGE_DEAD_LETTERS", "'-inf', last, 'LIMIT'", "'-inf', '+inf', 'LIMIT'")],
        ["tests/scripts/test_scripts.py::test_done_with_dead_letters"],
        "valkey",
    ),
    Bug(
        "own-letters-again",
        "Reading dead letters begins anew with each page",
        [in_script("DEAD_LETTERS", "first = redis.call('ZRANK', dead, last) + 1", "first = 0")],
    ),
)

BUGS = {bug.name: bug for bug in (*_WEAKNESSES, *_OURS)}
