#!/usr/bin/env python3
"""Take one piece at a time out of a Lua script and check that a test notices.

Each mutant is a textual patch that must apply exactly once: a script that has changed stops the run, so that no mutant
goes stale unseen. The patched package lives in a temporary folder; conformance runs first, the property test where that
passes. Exits 1 when a mutant survives, 2 when a patch does not apply or the tests fail without one.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LUA = Path("penstock/store/lua")
RUN_SECONDS = 400
#: The tests most likely to notice come first.
FIRST = {
    "submit": "test_submit",
    "claim": "test_claim",
    "extend": "test_lease",
    "settle": "test_settle",
    "cancel": "test_change",
    "redrive": "test_change",
    "delete": "test_change",
    "promote": "test_sweeps",
    "reap": "test_sweeps",
    "release_held": "test_lease",
    "lib/lose": "test_sweeps",
    "lib/lease": "test_sweeps",
    "lib/once": "test_once",
    "lib/create": "test_submit",
    "lib/unique": "test_unique",
    "purge": "test_queues",
    "pause": "test_queues",
    "reserve": "test_once",
    "confirm": "test_once",
    "prune": "test_sweeps",
    "put_schedule": "test_schedules",
    "pause_schedule": "test_schedules",
    "delete_schedule": "test_schedules",
    "due_schedules": "test_schedules",
    "tick": "test_schedules",
    "lib/schedule": "test_schedules",
    "announce": "test_read",
    "watch": "test_wait",
    "lib/wake": "test_wait",
    "lib/watch": "test_output",
    "lib/output": "test_output",
    "follow": "test_output",
    "output": "test_output",
    "lib/place": "test_sweeps",
    "lib/together": "test_together",
    "lib/job": "test_change",
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Describe one patch: in ``script`` the text ``old`` becomes ``new``."""

    script: str
    name: str
    old: str
    new: str = ""


def _of(script: str, *patches: tuple[str, str] | tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(script, *patch) for patch in patches]


MUTANTS = [
    *_of(
        "submit",
        ("a bad item removes what stood there", " and begun == item[1] then", " then"),
        ("a bad item removes what the one before made", "  begun = nil\n"),
        ("keys not remembered", "    remember(digest, now + item[15], item[14], answer[2], in_short(answer))\n"),
        ("conflicts use up the idempotency key", " and answer[1] ~= 'held' then", " then"),
        ("the wrong job is remembered", "item[14], answer[2], in_short", "item[14], item[1], in_short"),
        ("keys not recalled", "  local record = recall(digest)\n", "  local record = nil\n"),
        ("totals not written", "flush()\nreturn answers", "return answers"),
    ),
    *_of(
        "lib/create",
        ("no look for a standing job", "redis.call('EXISTS', K.job(id)) == 1", "false"),
        ("a standing job that waits no more still tells its due time", "PLACES[standing.status] == 'delayed' and "),
        ("no bound on depth", "return waiting[queue] >= bounds[queue]", "return false"),
        ("one waiting job too many", "return waiting[queue] >= bounds[queue]", "return waiting[queue] > bounds[queue]"),
        ("a batch fills past the bound", "    waiting[queue] = waiting[queue] + 1\n"),
        ("refusals not counted", "    add(counts, 'refused', queue, 1)\n"),
        ("no look for a holder", "digest and holder_of(digest)", "nil"),
        (
            "a running holder is replaced",
            "(PLACES[holder.status] == 'queue' or PLACES[holder.status] == 'delayed')",
            "true",
        ),
        ("a replaced job goes on", "    finish(holder.id, holder, 'cancelled', {'cancel', now}, retention)\n"),
        ("a replacement needs room", " and not (holder and holder.queue == queue) then", " then"),
        (
            "a replacement needs no room anywhere",
            " and not (holder and holder.queue == queue) then",
            " and not holder then",
        ),
        ("a replaced job's room is counted too late", "    is_full(holder.queue)\n"),
        ("a replaced job still takes room", "      waiting[holder.queue] = waiting[holder.queue] - 1\n"),
        ("the key not taken", "    lock(digest, last, id, now, '', item[17] ~= '')\n"),
        ("the job does not know its key", "    put('unique', string.format('%s|%s|%.0f', digest, item[17], last))\n"),
        ("conflicts not counted", "    add(counts, 'conflicts', queue, 1)\n"),
        ("existing not counted", "    add(counts, 'existing', queue, 1)\n"),
        ("replaced not counted", "    add(counts, 'replaced', holder.queue, 1)\n"),
        ("a refused replacement leaves a wrong gauge", "    add(gauges, 'delayed', queue, -1)\n"),
        ("due time ignored", "if due and due > now then", "if false then"),
        ("due now counts as later", "due > now then", "due >= now then"),
        ("relative due time counts from zero", "(item[9] and now + item[9])", "item[9]"),
        ("relative expiry counts from zero", "(item[11] and now + item[11])", "item[11]"),
        ("retention not stored", "  put('retention', item[12])\n"),
        ("expiry not stored", "  put('expires', expires)\n"),
        ("type not stored", "  put('type', job_type ~= 'task' and job_type)\n"),
        ("input not stored", "  put_value(fields, 'input', K.input(id), input)\n"),
        ("in no place", "  enter(id, job, job.status, at)\n"),
        ("not counted", "  add(counts, 'submitted', queue, 1)\n"),
        ("queue not listed", "    redis.call('SADD', K.queues, queue)\n"),
    ),
    *_of(
        "claim",
        ("stray entries run", "  if job.status ~= 'queued' then\n", "  if false then\n"),
        ("stray entries stay", "    redis.call('ZREM', queue_key, id)\n"),
        ("late jobs still run", "if job.expires and now >= tonumber(job.expires)", "if false"),
        ("late from one ms after", "now >= tonumber(job.expires)", "now > tonumber(job.expires)"),
        (
            "started jobs expire",
            "now >= tonumber(job.expires) and tonumber(job.attempt or 0) == 0",
            "now >= tonumber(job.expires)",
        ),
        ("paused queues are served", "  if not is_paused(request[5][index]) then\n", "  if true then\n"),
        ("weights ignored", "  if priority_weights or queue_weights then\n", "  if false then\n"),
        ("the draw ignored", "slots / total - draw)", "slots / total)"),
        ("tasks ignored", "if known and not known[name] then", "if false then"),
        ("types claimed as tasks", "job.type and '@' .. job.type or job.task", "job.task"),
        ("tasks of live workers deferred", "    if known_elsewhere(name) then\n", "    if false then\n"),
        ("a worker lives a ms longer", "tonumber(seen) > now - TASK_LIVE_MS", "tonumber(seen) >= now - TASK_LIVE_MS"),
        ("a job without priority stops the others", " and job.priority) then", ") then"),
        (
            "errors of earlier attempts are read",
            "  if redis.call('HEXISTS', K.job(id), 'attempt') == 1 then\n",
            "  if false then\n",
        ),
        ("unknown tasks never fail", ">= bounds[3] then", ">= math.huge then"),
        ("unknown tasks fail a ms later", ">= bounds[3] then", "> bounds[3] then"),
        (
            "a redrive does not start the day anew",
            "math.max(tonumber(job.created), tonumber(job.redriven or 0))",
            "tonumber(job.created)",
        ),
        ("deferring has no bound", "math.min(1000 * 2 ^ tries, 30000)", "1000 * 2 ^ tries"),
        ("deferring does not grow", "{'no_handler', tries + 1, ", "{"),
        ("deferred not counted", "    add(counts, 'deferred', job.queue, 1)\n"),
        ("deferred not told", "    deferred = deferred + 1\n"),
        ("attempt does not rise", "job.attempt = tonumber(job.attempt or 0) + 1", "job.attempt = 1"),
        ("nonce not stored", "'nonce', nonce, ", ""),
        ("worker not stored", "'worker', worker, 'started'", "'started'"),
        ("start not stored", ", 'started', now}\n", "}\n"),
        ("old progress stays", "        redis.call('HDEL', K.job(one.id), 'progress')\n"),
        ("what could not be moved is handed out", "    if one.failed then\n", "    if false then\n"),
        ("what could not be moved is looked at for ever", "moved, stayed = moved - failed, stayed + failed\n", ""),
        ("started not counted", "  add(counts, 'started', job.queue, 1)\n"),
        ("looks on for ever", " and looked < LOOK do", " do"),
        ("no second window", "  if depth > class.stayed then\n", "  if false then\n"),
        ("second window always at the start", "math.floor(window_start * (depth - class.stayed))", "0"),
        ("skipped not told", "  skipped = skipped + stayed - others\n"),
        ("apart ones count as skipped", "skipped + stayed - others", "skipped + stayed"),
        ("apart ones are handed out", "if (tonumber(job.lost or 0) >= bounds[6]) ~= alone then", "if false then"),
        ("apart ones wake all", "depth > (apart_of[queues[q]] or 0)", "depth > 0"),
        ("apart ones counted twice", " and not is_apart[id] then", " then"),
        ("several alone at once", "  limit = math.min(limit, 1)\n"),
        ("alone not stored", "    fields[#fields + 1] = 'alone'\n    fields[#fields + 1] = job.attempt\n"),
        ("the attempt before not told", "  if job.attempt then\n", "  if false then\n"),
        ("large inputs sent", "size > bounds[1] or ", ""),
        ("no bound on bytes a call", " or size > bytes_left", ""),
        ("bytes not counted", "  bytes_left = bytes_left - size\n"),
        ("what remains not told", "    remaining = 1\n"),
        ("wake-up not passed on", "    set_marker(queues[q], true)\n"),
        ("totals not written", "flush()\nif #jobs", "if #jobs"),
    ),
    *_of(
        "extend",
        ("state not checked", "job.status ~= 'running' or ", ""),
        ("attempt not checked", " or tonumber(job.attempt) ~= item[2]", ""),
        ("nonce not checked", " or job.nonce ~= item[3]", ""),
        ("lease not renewed", "  redis.call('ZADD', K.running, deadline, id)\n"),
        ("progress not stored", "    redis.call('HSET', K.job(id), 'progress', item[4])\n"),
        ("no progress clears it", "  if item[4] ~= '' then\n", "  if true then\n"),
        ("cancel not told", "job.cancel and 1 or 0", "0"),
        ("progress not told", "      notify(id, job.watch, false)\n"),
    ),
    *_of(
        "settle",
        ("the same twice completes twice", "  if completing[id] then\n", "  if false then\n"),
        ("completions not written", "complete_together()\nflush()", "flush()"),
        ("completing frees no unique key", ", 'unique'}", "}"),
        ("attempt not checked", " or tonumber(job.attempt or 0) ~= attempt", ""),
        ("nonce not checked", " or job.nonce ~= nonce", ""),
        ("state not checked", "  if job.status ~= 'running' then\n", "  if false then\n"),
        ("any repeat is a repeat", "job.settled == mark and 'repeated' or 'stale'", "'repeated'"),
        ("no repeat is a repeat", "job.settled == mark and 'repeated' or 'stale'", "'stale'"),
        ("a repeat by another verb is one", "local mark = attempt .. ' ' .. verb", "local mark = attempt .. ''"),
        ("repeats not remembered", "local fields = {'settled', mark}", "local fields = {'counted', job.counted or 0}"),
        ("cancel without a request", "  if verb == 'cancel' and not job.cancel then\n", "  if false then\n"),
        ("result not stored", "    put_value(fields, 'result', K.result(id), value)\n"),
        ("what was over its limit is not counted", "    add(counts, item[9], job.queue, 1)\n"),
        (
            "failure not counted",
            "tonumber(job.counted or 0) + 1\n    fields[#fields + 1] = 'reason'",
            "tonumber(job.counted or 0)\n    fields[#fields + 1] = 'reason'",
        ),
        ("reason not stored", "    fields[#fields + 1] = 'reason'\n    fields[#fields + 1] = item[7]\n"),
        (
            "retry not counted",
            "tonumber(job.counted or 0) + 1\n    fields[#fields + 1] = 'due'",
            "tonumber(job.counted or 0)\n    fields[#fields + 1] = 'due'",
        ),
        ("retry not in the totals", "    add(counts, 'retried', job.queue, 1)\n"),
        (
            "retry leaves no record",
            "elseif verb == 'retry' then\n    record(id, job, fields, item[8], value)\n",
            "elseif verb == 'retry' then\n",
        ),
        ("requested cancel ignored", "  elseif job.cancel then\n", "  elseif verb == 'cancel' then\n"),
        (
            "snooze leaves no record",
            "elseif verb == 'snooze' then\n    record(id, job, fields, 'released', value)\n",
            "elseif verb == 'snooze' then\n",
        ),
        (
            "release loses its place",
            "move(id, job, 'queued', job.seq, fields)",
            "move(id, job, 'queued', next_seq(1), fields)",
        ),
        ("totals not written", "flush()\nreturn answers", "return answers"),
    ),
    *_of(
        "cancel",
        ("final jobs cancelled", "  if place == 'final' then\n", "  if false then\n"),
        ("later request counts", "job.cancel or now", "now"),
        ("wakes each time", "    if not job.cancel then\n", "    if true then\n"),
        ("request not stored", "      redis.call('HSET', K.job(id), 'cancel', requested)\n"),
        ("worker not told", "      wake(job.worker)\n"),
        ("followers not told", "        notify(id, job.watch, false)\n"),
        ("totals not written", "flush()\nreturn answers", "return answers"),
    ),
    *_of(
        "redrive",
        ("counted stays", "'counted', 0, ", ""),
        ("lost stays", "'lost', 0, ", ""),
        ("time of redrive not stored", ", 'redriven', now}", "}"),
        ("old token still repeats", "'cancel', 'settled', ", "'cancel', "),
        ("requested cancel stays", "'finished', 'cancel', ", "'finished', "),
        ("no_handler stays", "'no_handler', ", ""),
        ("progress stays", "'progress', 'due')", "'due')"),
        (
            "keeps its old place",
            "move(id, job, 'queued', seq, {'seq', seq, 'counted'",
            "move(id, job, 'queued', job.seq, {'counted'",
        ),
        ("no look for a holder", "bound and holder_of(digest)", "nil"),
        ("its own lock is a conflict", " and holder.id ~= id then", " then"),
        ("the key not taken again", "      lock(digest, tonumber(last), id, job.created, '', true)\n"),
        ("early without being asked", "elseif early and ", "elseif "),
        ("not counted", "    add(counts, 'redriven', job.queue, 1)\n"),
        ("totals not written", "flush()\nreturn answers", "return answers"),
    ),
    *_of(
        "delete",
        ("the unique key stays", "    let_go(id, job, true)\n"),
        ("state not checked", "  if PLACES[job.status] ~= 'final' then\n", "  if false then\n"),
        ("stays in its place", "  leave(id, job, job.status)\n"),
        ("keys stay", "  remove_job(id)\n"),
        ("totals not written", "flush()\nreturn answers", "return answers"),
    ),
    *_of(
        "promote",
        ("stray entries are queued", "if PLACES[job.status] == 'delayed' then", "if true then"),
        ("stray entries stay delayed", "    redis.call('ZREM', K.delayed, id)\n"),
        (
            "started jobs expire",
            "if (place == 'queue' or place == 'delayed') and tonumber(job.attempt or 0) == 0 then",
            "if true then",
        ),
        ("stray entries stay in expiry", "    redis.call('ZREM', K.expiry, id)\n"),
        (
            "retries keep their old place",
            "move(id, job, 'queued', seq, {'seq', seq})",
            "move(id, job, 'queued', job.seq or seq, {'seq', job.seq or seq})",
        ),
        ("nothing due is queued", "sweep(K.delayed, limit, queue_due)\n"),
        ("nothing late expires", "sweep(K.expiry, limit, expire_late)\n"),
        ("limit does not bound what is due", "sweep(K.delayed, limit, ", "sweep(K.delayed, 1000, "),
        ("limit does not bound what is late", "sweep(K.expiry, limit, ", "sweep(K.expiry, 1000, "),
        ("totals not written", "flush()\nreturn", "return"),
    ),
    *_of(
        "reap",
        ("stray entries are given back", "  if job.status ~= 'running' then\n", "  if false then\n"),
        ("stray entries stay", "    redis.call('ZREM', K.running, id)\n"),
        ("no grace", "if now < reap_from then\n  return {}\nend\n"),
        ("a longer gap is no gap", "gap > GAP_MS", "gap > GAP_MS + 1"),
        ("a clock that went back is no gap", " or gap < 0", ""),
        (
            "sweeps not remembered",
            "redis.call('HSET', K.meta, 'swept_at', now, 'reap_from', reap_from)",
            "redis.call('HSET', K.meta, 'reap_from', reap_from)",
        ),
        ("grace though nothing runs", "redis.call('ZCARD', K.running) > 0 and now + lease_ms or 0", "now + lease_ms"),
        ("always the usual grace", "tonumber(last[3]) or usual_lease_ms", "usual_lease_ms"),
        ("a gap makes leases forgotten", "    redis.call('HSET', K.meta, 'lease_at', now)\n"),
        ("leases never forgotten", "  redis.call('HDEL', K.meta, 'lease', 'lease_at')\n"),
        ("wake-ups not set again", "  set_marker(string.match(member, '^(.*):%l+$'), true)\n"),
        ("limit does not bound", "sweep(K.running, limit, ", "sweep(K.running, 1000, "),
        ("totals not written", "flush()\nreturn answers", "return answers"),
    ),
    *_of(
        "release_held",
        ("other workers' jobs go too", " or job.worker ~= worker", ""),
        ("state not checked", "job.status ~= 'running' or ", ""),
        ("stray entries stay", "    redis.call('ZREM', K.held(worker), id)\n"),
        ("a clock that went back hides some", " or '+inf'", " or now"),
        ("lost ones are only released", "  if max_lost > 0 and (", "  if false and ("),
        ("those not started are lost", " and (not started_ids or started[id]) then", " then"),
        ("named ones go too", "not named[id] and ", ""),
        ("fresh ones go too", "min_age_ms > 0 and now - min_age_ms or ", ""),
        ("requested cancel ignored", "  if job.cancel then\n", "  if false then\n"),
        ("leaves no record", "  record(id, job, fields, 'released')\n"),
        ("loses its place", "move(id, job, 'queued', job.seq, fields)", "move(id, job, 'queued', next_seq(1), fields)"),
        ("not told", "  given_back = given_back + 1\n"),
        ("totals not written", "flush()\nreturn", "return"),
    ),
    *_of(
        "lib/lose",
        ("lost not counted", "tonumber(job.lost or 0) + 1", "tonumber(job.lost or 0)"),
        ("one loss too many", "lost >= max_lost", "lost > max_lost"),
        ("never poisoned", "lost >= max_lost", "false"),
        ("poisoned beside others", " and tonumber(job.alone or 0) == tonumber(job.attempt)", ""),
        ("requested cancel ignored", "  if job.cancel then\n", "  if false then\n"),
        ("no reason", "    fields[#fields + 1] = 'reason'\n    fields[#fields + 1] = 'poisoned'\n"),
        ("leaves no record", "  record(id, job, fields, 'worker_lost')\n"),
        ("lost not in the totals", "  add(counts, 'lost', job.queue, 1)\n"),
        ("poisoned not in the totals", "    add(counts, 'poisoned', job.queue, 1)\n"),
        ("loses its place", "move(id, job, 'queued', job.seq, fields)", "move(id, job, 'queued', next_seq(1), fields)"),
    ),
    *_of(
        "lib/lease",
        ("shorter ones count too", "lease_ms > longest or", "true or"),
        ("never seen again", "math.abs(now - seen) > 60000", "false"),
    ),
    *_of(
        "lib/unique",
        (
            "a forgotten lock locks out",
            "if own == digest and (last > now or is_bound(job, kept_until)) then",
            "if true then",
        ),
        ("time is no hold", "(last > now or is_bound", "(is_bound"),
        ("the job's word is not asked", "(last > now or is_bound(job, kept_until))", "(last > now)"),
        ("what is gone holds nothing", "elseif last > now and status ~= '' then", "elseif false then"),
        ("what is gone holds for ever", "elseif last > now and status", "elseif status"),
    ),
    *_of(
        "lib/once",
        ("keys hold for ever", "tonumber(keep_until) <= now", "false"),
        ("keys hold a ms longer", "tonumber(keep_until) <= now", "tonumber(keep_until) < now"),
        ("another body is answered too", "record.fingerprint ~= fingerprint", "false"),
        ("reserved keys answer", "  if record.answer == '' then\n", "  if false then\n"),
    ),
    *_of(
        "purge",
        ("later ones go too", "'-inf', up_to, 'LIMIT'", "'-inf', '+inf', 'LIMIT'"),
        ("limit does not bound", "'LIMIT', 0, limit - looked", "'LIMIT', 0, 1000"),
        ("state not checked", "  if job.status ~= 'queued' then\n", "  if false then\n"),
        ("not told", "  cancelled = cancelled + 1\n"),
        ("totals not written", "flush()\nreturn", "return"),
    ),
    *_of(
        "pause",
        ("not paused", "redis.call(ARGV[2] == '1' and 'SADD' or 'SREM', K.paused, queue)\n"),
        ("no wake-up after a resume", "flush()\nreturn", "return"),
    ),
    *_of(
        "reserve",
        ("nothing is kept", "  remember(digest, now + keep_ms, fingerprint, id, '')\n"),
        ("who repeats takes the key", "  if record then\n", "  if false then\n"),
        ("not noted who else came", "answer[1] == 'reserved' and record.id ~= id", "false"),
        ("a repeat counts as somebody else", " and record.id ~= id", ""),
    ),
    *_of(
        "confirm",
        ("others' keys are touched", "record.id == id and ", ""),
        ("refused submits keep the key", "        redis.call('DEL', K.idem(digest))\n"),
        ("others' reservations are forgotten", "if not record.shared then", "if true then"),
    ),
    *_of(
        "prune",
        ("stray entries remove their job", "  if PLACES[job.status] ~= 'final' then\n", "  if false then\n"),
        ("stray entries stay", "    redis.call('ZREM', index_key, id)\n"),
        ("stays in its place", "  leave(id, job, job.status)\n"),
        ("keys stay", "  remove_job(id)\n"),
        ("not counted", "  add(counts, counted_as, job.queue, 1)\n"),
        ("dropped dead letters are counted as others", "K.dead(queue), 'dead_dropped'", "K.dead(queue), 'dropped'"),
        ("one dead letter too many", "- dead_cap, limit", "- dead_cap - 1, limit"),
        ("limit bounds each queue alone", "limit - dead_removed", "limit"),
        ("one finished job too many", "- finished_cap, limit", "- finished_cap - 1, limit"),
        ("limit does not bound finished jobs", "- finished_cap, limit)", "- finished_cap, 1000)"),
        ("counts what age removed twice", " + (gauges['finished:'] or 0) - finished_cap", " - finished_cap"),
        ("newest first", "return a.at < b.at", "return a.at > b.at"),
        ("ties in any order", "return a.id < b.id", "return a.id > b.id"),
        ("limit does not bound age", "sweep(K.expire, limit, ", "sweep(K.expire, 1000, "),
        ("totals not written", "flush()\nreturn", "return"),
    ),
    *_of(
        "announce",
        ("tasks not seen", "  redis.call('ZADD', K.tasks, now, task[1])\n"),
        ("workers not seen", "redis.call('ZADD', K.workers, now, worker)\n"),
        ("options not stored", "  redis.call('HSET', K.task_options, task[1], task[2])\n"),
    ),
    *_of(
        "watch",
        ("not remembered", "  register(id, job.watch, process)\n"),
    ),
    *_of(
        "lib/watch",
        ("not written", "  redis.call('HSET', K.job(id), 'watch', name .. others)\n"),
        ("others forgotten", "'watch', name .. others)", "'watch', name)"),
        ("the newest gives way", "' %S+$'", "'^ %S+'"),
    ),
    *_of(
        "follow",
        ("nobody told", "  register(id, job.watch, '+' .. process)\n"),
        ("told of the end alone", "'+' .. process", "process"),
        ("positions beyond the end hide all", "seen > one.stored and before or math.max(seen, before)", "seen"),
        ("positions beyond the end are the end", "seen > one.stored and before or ", ""),
        ("what the worker dropped is not told", "before + one.missing", "before"),
    ),
    *_of(
        "output",
        ("stale tokens write", "  if job.status ~= 'running' or tonumber", "  if false and tonumber"),
        ("ended attempts write", "job.status ~= 'running' or ", ""),
        ("old attempts write", "tonumber(job.attempt) ~= attempt or ", ""),
        ("foreign nonces write", " or job.nonce ~= item[3]", ""),
        ("a wrong type is met half-way", "  read_kept(tally, id)\n", "  pcall(read_kept, tally, id)\n"),
        ("a new attempt goes on with the numbers of the old", "    tally.attempt, tally.made = attempt, 0\n"),
        ("drops counted twice", "  if made > tally.made then", "  if true then"),
        ("drops not counted", "    tally.log.lost, tally.stream.lost = item[5], item[6]\n"),
        ("repeats stored twice", "    if made + index > tally.made then", "    if true then"),
        ("bytes not counted", "      one.bytes = one.bytes + #text\n"),
        ("entries not written", "    redis.call('RPUSH', one.key, unpack(one.fresh))\n"),
        ("no cap on entries", "one.kept > cap.count or ", ""),
        ("no cap on bytes", " or (one.bytes > cap.bytes and one.kept > 0)", ""),
        ("one byte too many", "one.bytes > cap.bytes", "one.bytes > cap.bytes + 1"),
        (
            "dropped bytes still count",
            "    one.bytes = one.bytes - #redis.call('LPOP', one.key)\n",
            "    redis.call('LPOP', one.key)\n",
        ),
        ("dropped entries not counted", "    add(counts, kind .. '_dropped', queue, dropped + one.lost)\n"),
        ("followers not told", "    notify(id, job.watch, false)\n"),
        ("totals not written", "flush()\nreturn answers", "return answers"),
    ),
    *_of(
        "lib/wake",
        ("nobody woken", "  push_signal(key, '1')\n"),
        ("no bound", "  redis.call('LTRIM', key, -16, -1)\n"),
        ("stays for ever", "  redis.call('EXPIRE', key, 120)\n"),
    ),
    *_of(
        "lib/place",
        ("unique keys are never free", "    let_go(id, job)\n"),
        ("a key of another is freed", "  if holder ~= id then\n    return\n  end\n  if forgotten", "  if forgotten"),
        ("final jobs hold on", "return PLACES[job.status] ~= 'final' and (kept", "return (kept"),
        (
            "a start frees nothing",
            "(kept_until == 'started' and tonumber(job.attempt or 0) == 0)",
            "kept_until == 'started'",
        ),
        ("time is no hold", "if forgotten or last <= now or", "if true or"),
        ("a cancel keeps the time", " or job.status == 'cancelled' or", " or"),
        ("an expiry keeps the time", " or job.status == 'expired' then", " then"),
        ("a delete keeps the time", "if forgotten or last", "if last"),
        ("how it ended not remembered", "PLACES[job.status] == 'final' and job.status or '', false)", "'', false)"),
        (
            "a time that is over never goes",
            "redis.call('SET', K.unique(digest), text, 'PX', math.max(1, last - now))",
            "redis.call('SET', K.unique(digest), text)",
        ),
        (
            "a held key goes from memory",
            "    redis.call('SET', K.unique(digest), text)\n",
            "    redis.call('SET', K.unique(digest), text, 'PX', 600000)\n",
        ),
        ("stays in the first index", "    redis.call('ZREM', first, id)\n"),
        ("stays in the second index", "    redis.call('ZREM', second, id)\n"),
        ("still expires", "      redis.call('ZREM', K.expiry, id)\n"),
        ("not in the second index", "    redis.call('ZADD', second, place == 'final' and at + keep_ms or now, id)\n"),
        ("pruned at once", "place == 'final' and at + keep_ms or now", "now"),
        ("never expires", "      redis.call('ZADD', K.expiry, job.expires, id)\n"),
        ("delayed not counted", "    add(gauges, 'delayed', job.queue, amount)\n"),
        ("running not counted", "    add(gauges, 'running', job.queue, amount)\n"),
        ("finished not counted", "    add(gauges, 'finished', '', amount)\n"),
        ("gauges do not fall", "  tally(job, status, -1)\n"),
        ("gauges do not rise", "  tally(job, status, 1)\n"),
        ("waiters not told", "    notify(id, job.watch, place == 'final')\n"),
        ("waiters told of each change", "follower or is_end", "true"),
        ("followers not told", "follower or is_end", "is_end"),
        ("no tombstone", "keep_ms == 0 and 60000 or keep_ms", "keep_ms"),
        ("own retention ignored", "tonumber(job.retention) or ", ""),
        ("failed kept like others", "(status == 'failed' and retention.failed_ms or retention.ms)", "retention.ms"),
        ("finish time not stored", "  fields[#fields + 1] = 'finished'\n  fields[#fields + 1] = now\n"),
        ("ends not counted", "  add(counts, status, job.queue, 1)\n"),
        ("marker not set", "    push_signal(marker, '1')\n"),
        ("markers pile up", "elseif is_silent(marker) then", "else"),
        ("marker stays", "    redis.call('DEL', marker)\n"),
        ("ready not kept", "          redis.call('ZADD', K.ready, depth, members[index])\n"),
        ("ready stays", "          redis.call('ZREM', K.ready, members[index])\n"),
        ("due not told", "      push_signal(K.due, '1')\n"),
        ("due piles up", " and is_silent(K.due) then", " then"),
        ("later due times wake", "tonumber(first[2]) >= earliest_entered", "true"),
        ("counters not written", "    redis.pcall('HINCRBY', K.counters, field, amount)\n"),
        ("gauges not written", "      redis.pcall('HINCRBY', K.gauges, field, amount)\n"),
        ("places given twice", "    seq_next = seq_last - block + 1\n", "    seq_next = 1\n"),
    ),
    *_of(
        "lib/together",
        ("waiters not told", "job.watch or ", ""),
        ("still expires", "job.expires or ", ""),
        ("keeps its unique key", " or job.unique)", ")"),
        ("another queue's index", "group.job.queue == job.queue and ", ""),
        ("another priority's index", " and group.job.priority == job.priority", ""),
        ("another worker's index", " and group.job.worker == job.worker", ""),
        ("pruned at once", "one.keep_ms and one.at + one.keep_ms or now", "now"),
        ("one damaged index fails nobody", "group.entered = enter_together(group, status)", "group.entered = true"),
        ("not in the first index", "type(redis.pcall('ZADD', first, unpack(group.first))) ~= 'table'", "true"),
        ("stays in the first index", "  redis.pcall('ZREM', first, unpack(ids))\n"),
        ("stays in the second index", "    redis.pcall('ZREM', second, unpack(ids))\n"),
        ("gauges do not fall", "  tally(group.job, group.job.status, -#ids)\n"),
        ("gauges do not rise", "  tally(group.job, status, #ids)\n"),
        ("a failed move is none", "    one.failed = not ok and failure or nil\n"),
    ),
    *_of(
        "put_schedule",
        ("no bound", "redis.call('ZCARD', K.schedules) >= room", "false"),
        (
            "one schedule too few",
            "redis.call('ZCARD', K.schedules) >= room",
            "redis.call('ZCARD', K.schedules) + 1 >= room",
        ),
        ("the same again is written anew", "  code = 'unchanged'\n"),
        ("every put moves the next tick", "standing[2] == timing and standing[3] or first", "first"),
        ("a new timing keeps the next tick", "standing[2] == timing and standing[3] or first", "standing[3] or first"),
        ("not listed", "redis.call('ZADD', K.schedules, 0, name)\n"),
        ("never ticks", "  tick_next(name, at)\n"),
        ("a put ends a pause", "if not standing[5] then", "if true then"),
        ("a revision is used twice", "math.max(now, (tonumber(standing[4]) or 0) + 1)", "now"),
        ("creation forgotten", "standing[6] or now", "now"),
    ),
    *_of(
        "pause_schedule",
        ("still ticks", "  redis.call('ZREM', K.schedule_due, name)\n"),
        ("a pause anew", "redis.call('HSETNX', key, 'paused', now)", "redis.call('HSET', key, 'paused', now)"),
        ("stays paused", "  redis.call('HDEL', key, 'paused')\n"),
        ("ticks no more", "    tick_next(name, at)\n"),
        ("stands where it stood", "    redis.call('HSET', key, 'next', at)\n"),
        ("missing ones are made", "if not standing[1] then", "if false then"),
    ),
    *_of(
        "delete_schedule",
        ("still ticks", "redis.call('ZREM', K.schedule_due, name)\n"),
        ("stays", "redis.call('DEL', K.schedule(name))", "0"),
    ),
    *_of(
        "due_schedules",
        ("puts off for ever", "    redis.call('ZADD', K.schedule_due, standing[1], name)\n"),
        ("early", "tonumber(standing[1]) > now", "false"),
        ("all at once", "bytes_left - redis.call('HSTRLEN', key, 'definition')", "bytes_left - 1048576"),
    ),
    *_of(
        "tick",
        ("no look at the revision", "standing[1] ~= item[2] or ", ""),
        ("no look at the next tick", " or standing[2] ~= item[3]", ""),
        ("paused ones tick", " or standing[3] then", " then"),
        ("jobs overlap", "item[6] == 1 or not is_busy(last_job)", "true"),
        ("final jobs are busy", "status and PLACES[status] ~= 'final'", "status"),
        ("a full queue counts as fired", "if code == 'full' then", "if false then"),
        ("no expiry", "new[10], new[12] = tick[4], job[6]", "new[12] = job[6]"),
        ("no retention", "new[10], new[12] = tick[4], job[6]", "new[10] = tick[4]"),
        ("fired not counted", "(tonumber(standing[6]) or 0) + fired", "0"),
        ("skipped not counted", "(tonumber(standing[7]) or 0) + skipped", "0"),
        ("missed not counted", "(tonumber(standing[8]) or 0) + item[5]", "0"),
        ("last job forgotten", "  if last_job then\n", "  if false then\n"),
        ("the index stays", "    redis.call('ZADD', K.schedule_due, item[4], name)\n"),
        ("the next tick stays", "    fields[#fields + 1] = 'next'\n    fields[#fields + 1] = item[4]\n"),
        ("the last tick of all stays", "    redis.call('HDEL', key, 'next')\n"),
        ("nothing counted", "      add(counts, counter, job[3], amount)\n"),
        ("totals not written", "flush()\nreturn answers", "return answers"),
    ),
    *_of(
        "lib/schedule",
        ("nobody is told", "    push_signal(K.due, '1')\n"),
        ("not in the index", "  redis.call('ZADD', K.schedule_due, at, name)\n"),
    ),
    *_of(
        "lib/job",
        ("cancelling frees no unique key", "'settled', 'unique', ", "'settled', "),
        ("input stays", "K.job(id), K.input(id), ", "K.job(id), "),
        ("result stays", "K.result(id), ", ""),
        ("log stays", "K.log(id), ", ""),
        ("stream stays", ", K.stream(id))", ")"),
        ("records without bound", "    redis.call('HDEL', K.job(id), 'e' .. (attempt - 20))\n"),
        ("errors not recorded", "(error_json or '')", "''"),
        ("large values not stored", "    redis.call('SET', key, value)\n"),
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", nargs="+", default=[""], help="mutants with TEXT in script or name")
    parser.add_argument("--list", action="store_true", help="check that all patches apply, and list them")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if any(text in f"{mutant.script}: {mutant.name}" for text in options.only)]
    stale = [problem for mutant in chosen if (problem := _problem(mutant))]
    if stale or not chosen:
        print("\n".join(stale) or "no such mutant", file=sys.stderr)
        return 2
    if options.list:
        for mutant in chosen:
            print(f"{mutant.script:14} {mutant.name}")
        print(f"{len(chosen)} mutants")
        return 0
    with tempfile.TemporaryDirectory(prefix="penstock-mutants-") as folder:
        shutil.copytree(ROOT / "src", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        return _run(chosen, Path(folder))


def _run(chosen: list[Mutant], source: Path) -> int:
    noticed_by, seconds = _noticed_by(source, None)
    if noticed_by:
        print(f"the tests fail without a mutant: {noticed_by}", file=sys.stderr)
        return 2
    print(f"{len(chosen)} mutants; without one the tests pass in {seconds:.0f} s", flush=True)
    survivors = []
    for number, mutant in enumerate(chosen, start=1):
        script = source / LUA / f"{mutant.script}.lua"
        text = script.read_text()
        script.write_text(text.replace(mutant.old, mutant.new))
        try:
            noticed_by, seconds = _noticed_by(source, mutant.script)
        finally:
            script.write_text(text)
        if not noticed_by:
            survivors.append(mutant)
        verdict = noticed_by or "SURVIVED"
        print(f"{number:3} {mutant.script:14} {mutant.name:52} {seconds:4.0f} s  {verdict}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were noticed")
    for mutant in survivors:
        print(f"survived: {mutant.script}: {mutant.name}", file=sys.stderr)
    return 1 if survivors else 0


def _problem(mutant: Mutant) -> str | None:
    path = ROOT / "src" / LUA / f"{mutant.script}.lua"
    count = path.read_text().count(mutant.old) if path.is_file() else 0
    if count == 1 and mutant.old != mutant.new:
        return None
    return f"{mutant.script}: {mutant.name}: the patch applies {count} times; it must apply once"


def _noticed_by(source: Path, script: str | None) -> tuple[str | None, float]:
    """Return the test that fails on the package in ``source``, None when all pass, and how long it took."""
    started = time.monotonic()
    suite = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/conformance").glob("test_*.py"))
    if script is not None:
        suite.sort(key=lambda path: Path(path).stem != FIRST[script])
    # Only Redis runs the scripts.
    found = _failing([*suite, "-k", "redis"], source) or _failing(["tests/property"], source)
    return found, time.monotonic() - started


def _failing(arguments: list[str], source: Path) -> str | None:
    environment = {**os.environ, "PYTHONPATH": str(source), "PENSTOCK_TEST_FAST": "1", "CI": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            output, _ = run.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            # The session holds the server that the tests started as well.
            os.killpg(run.pid, signal.SIGKILL)
            return "hangs"
    if run.returncode == 0:
        return None
    named = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output, re.MULTILINE)
    if run.returncode != 1 or named is None:
        raise SystemExit(f"the tests could not run:\n{output}")
    return named[1].removeprefix("conformance/")


if __name__ == "__main__":
    sys.exit(main())
