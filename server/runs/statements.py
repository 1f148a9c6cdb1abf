"""The statements of runs. Whoever locks a thread's row and a run's row locks the thread's first."""

# Starts a run: takes the lease of a thread that is there, free and open for new input ($13: or not), or makes a thread
# ($12). The server's row is locked against others who take it for dead. A request that is repeated starts nothing.
#
# A run that could start is counted, also where its thread is busy: nothing is stopped for one that may not be. ($8:
# seconds for each; 0 where it has been counted already, or isn't limited. $9: the window.) Its place ($10: how many
# there are, 0 for any number) makes the limit of runs at once hold: two starts that take the same one violate its
# index, as two with the same request_id do, and one of them tries again. $11: how many tokens a day has, 0 for any
# number.
#
# No epoch says that something is in the way; OBSTACLE says what.
START = """
with me as (
    select from servers where server_id = $4 for key share
), wanted as (
    select active_run_id is not null as is_busy from chat_sessions
    where not $12 and user_id = $1 and session_id = $2 and (status = 'active' or $13)
    union all
    select false where $12
), repeated as (
    select from runs where user_id = $1 and request_id = $5
), place as (
    select slot from generate_series(1, $10::integer) as free (slot)
    where not exists (select from runs where user_id = $1 and runs.slot = free.slot and ended_at is null)
    order by random()
    limit 1
), allowed as (
    select
        exists (select from repeated) as is_repeated,
        $10 = 0 or exists (select from place) as has_place,
        $11::bigint = 0 or not exists (
            select from token_usage where user_id = $1 and day = (now() at time zone 'utc')::date and tokens >= $11
        ) as has_tokens
), possible as (
    select from wanted, allowed, me where has_tokens and (has_place or is_busy) and not is_repeated
), counted as (
    insert into rate_limits as used (user_id, name, full_at)
    select $1, 'runs', clock_timestamp() + make_interval(secs => $8) from possible where $8 > 0
    on conflict (user_id, name) do update set
        full_at = least(greatest(used.full_at, clock_timestamp()), clock_timestamp() + make_interval(secs => $9 - $8))
            + make_interval(secs => $8)
    -- One that is further away than a window is of another window, or of another clock.
    where used.full_at <= clock_timestamp() + make_interval(secs => $9 - $8)
        or used.full_at > clock_timestamp() + make_interval(secs => $9 + 1)
    returning full_at
), open as (
    select from possible, allowed where has_place and ($8 = 0 or exists (select from counted))
), made as (
    insert into chat_sessions (user_id, session_id, active_run_id, run_epoch, log_position)
    select $1, $2, $3, 1, 1 from open where $12
    returning run_epoch, log_position
), taken as (
    update chat_sessions set active_run_id = $3, run_epoch = run_epoch + 1, log_position = log_position + 1
    where not $12 and user_id = $1 and session_id = $2 and active_run_id is null and (status = 'active' or $13)
        and exists (select from open)
    returning run_epoch, log_position
), thread as (
    select * from made union all select * from taken
), run as (
    insert into runs (
        user_id, session_id, run_id, server_id, epoch, creates_thread, request_id, request_hash, request_expires_at,
        slot
    )
    select
        $1, $2, $3, $4, run_epoch, $12, $5, $6, now() + make_interval(secs => $7),
        (select slot from place)
    from thread
), event as (
    insert into thread_events (user_id, session_id, position, kind, run_id)
    select $1, $2, log_position, 'run_started', $3 from thread
)
select
    (select run_epoch from thread) as epoch, is_repeated, has_place, has_tokens,
    exists (select from counted) as is_counted,
    $8 > 0 and exists (select from possible) and not exists (select from counted) as is_limited,
    coalesce((
        select least(greatest(extract(epoch from full_at - clock_timestamp())::float8 + $8 - $9, 0), $9)
        from rate_limits where user_id = $1 and name = 'runs'
    ), 0) as retry_after
from allowed
"""

OBSTACLE = """
select
    thread.session_id is not null as thread_exists, thread.status, thread.status_reason, thread.active_run_id,
    run.run_id, run.request_hash, run.request_expires_at <= now() as request_expired
from (values (1)) as one (row)
left join chat_sessions as thread on thread.user_id = $1 and thread.session_id = $2
left join runs as run on run.user_id = $1 and run.request_id = $3
"""

FORGET_EXPIRED_REQUEST = """
update runs set request_id = null where user_id = $1 and request_id = $2 and request_expires_at <= now()
"""

FORGET_AUTO_REQUEST = """
with run as (
    select run_id, request_id from runs where user_id = $1 and run_id = $2
), forgotten as (
    update runs set request_id = null from run
    where runs.user_id = $1 and runs.run_id = run.run_id and starts_with(run.request_id, $3)
)
select run_id from run
"""

# Gives the lease back. The rest of the log goes with it, so that whoever sees the end sees all. A run that didn't come
# to its own end and left nothing on the thread gives its request_id back as well: who repeats it wants another try, and
# not the same failure. $10 says that it left something. Where it doesn't, the thread is asked: a write may have been
# kept though its answer got lost. $11: how many tokens of models it took; $12: of which, as JSON.
END_RUN = """
with thread as (
    update chat_sessions set active_run_id = null, log_position = log_position + 1
    where user_id = $1 and session_id = $2 and active_run_id = $3
    returning log_position
), ended as (
    update runs set
        state = $4, ended_at = now(), last_sequence = $5, error = $6, usage = $12,
        request_id = case
            when $10 or $4 = 'completed' or exists (
                select from chat_messages
                where user_id = $1 and session_id = $2 and chat_messages.run_id = $3
                    and item_type <> 'sdk_hidden_context'
            ) then request_id
        end
    from thread
    where user_id = $1 and run_id = $3 and ended_at is null
    returning run_id
), written as (
    insert into run_events (user_id, run_id, first_sequence, last_sequence, events)
    select $1, $3, piece.* from ended, unnest($7::bigint[], $8::bigint[], $9::bytea[]) as piece
    on conflict do nothing
), event as (
    insert into thread_events (user_id, session_id, position, kind, run_id)
    select $1, $2, log_position, 'run_ended', $3 from thread
), counted as (
    insert into token_usage as used (user_id, day, tokens)
    select $1, (now() at time zone 'utc')::date, $11::bigint from ended where $11 > 0
    on conflict (user_id, day) do update set tokens = used.tokens + excluded.tokens
)
select run_id, pg_notify('chatkit_grpc', 'log') from ended
"""

# What all runs of a server said since the last flush. The server's row is locked: whoever forgets a dead server waits
# for this to end, and then finds all of it. The same piece twice is the same as once. Each piece looks its run up by
# itself and by its key: a join would read what the planner takes for small, and it knows little of what grows fast.
APPEND_LOG = """
with me as (
    select from servers where server_id = $1 for key share
), held as materialized (
    select piece.* from unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bytea[])
        as piece (user_id, run_id, first_sequence, last_sequence, events)
    cross join lateral (
        select from runs as run
        where run.user_id = piece.user_id and run.run_id = piece.run_id
            and run.server_id = $1 and run.state = 'running'
        limit 1
    ) as active
    where exists (select from me)
), written as (
    insert into run_events (user_id, run_id, first_sequence, last_sequence, events)
    select * from held
    on conflict do nothing
)
select coalesce(array_agg(run_id), '{}') as run_ids, (select pg_notify('chatkit_grpc', 'log')) from held
"""

# A page of the log for each of some runs: about 256 KiB, one piece at least.
READ_LOG = """
select
    run.user_id, run.run_id, run.session_id, run.state, run.last_sequence as end_sequence, run.has_log, run.error,
    run.creates_thread, piece.first_sequence, piece.last_sequence, piece.events
from unnest($1::text[], $2::text[], $3::bigint[]) as wanted (user_id, run_id, after)
join runs as run using (user_id, run_id)
left join lateral (
    select first_sequence, last_sequence, events
    from (
        select first_sequence, last_sequence, events,
            sum(octet_length(events)) over (order by last_sequence) - octet_length(events) as bytes_before
        from (
            select first_sequence, last_sequence, events from run_events
            where user_id = wanted.user_id and run_id = wanted.run_id and last_sequence > wanted.after
            order by last_sequence
            limit 200
        ) as next
    ) as sized
    where bytes_before < 262144
) as piece on true
order by run.user_id, run.run_id, piece.last_sequence
"""

# The whole log of a run. Where a run died, its row is locked.
READ_WHOLE_LOG = """
select first_sequence, last_sequence, events from run_events
where user_id = $1 and run_id = $2
order by last_sequence
"""

LAST_LOGGED = """
select coalesce(max(last_sequence), 0) from run_events where user_id = $1 and run_id = $2
"""

FIND_RUN = """
select run_id, session_id, state from runs where user_id = $1 and run_id = $2
"""

DESCRIBE_RUN = """
select run_id, session_id, state, created_at, ended_at, last_sequence, usage from runs
where user_id = $1 and run_id = $2
"""

FIND_ACTIVE_RUN = """
select thread.session_id, run.run_id, run.state
from chat_sessions as thread
left join runs as run on run.user_id = $1 and run.run_id = thread.active_run_id
where thread.user_id = $1 and thread.session_id = $2
"""

REQUEST_CANCEL = """
with run as (
    update runs set cancel_requested_at = coalesce(cancel_requested_at, now())
    where user_id = $1 and run_id = $2 and ended_at is null
    returning run_id
)
select run_id, pg_notify('chatkit_grpc', 'cancel') from run
"""

# Somebody looks at what a thread's active run has said so far.
GLANCE = """
update runs set watched_until = greatest(watched_until, now())
from chat_sessions as thread
where thread.user_id = $1 and thread.session_id = $2
    and runs.user_id = $1 and runs.run_id = thread.active_run_id and runs.state = 'running'
returning runs.run_id
"""

PROMISE_TO_WATCH = """
update runs set watched_until = now() + make_interval(secs => $3)
where (user_id, run_id) in (select * from unnest($1::text[], $2::text[])) and ended_at is null
"""

# Seconds since somebody watched from elsewhere; negative while somebody does.
UNWATCHED_FOR = """
select extract(epoch from now() - watched_until)::float8 from runs where user_id = $1 and run_id = $2
"""

# Says that a server lives. No row: others took it for dead. Also what its runs should know, and whether others died.
HEARTBEAT = """
with me as (
    update servers set heartbeat_at = now() where server_id = $1 returning server_id
)
select
    array(
        select run_id from runs
        where server_id = $1 and ended_at is null and cancel_requested_at is not null
    ) as cancelled,
    exists (select from servers where heartbeat_at < now() - make_interval(secs => $2)) as others_are_late
from me
"""

REGISTER_SERVER = "insert into servers (server_id) values ($1)"

FORGET_SERVER = "delete from servers where server_id = $1"

# A PostgreSQL that has just started has had no heartbeat from anybody.
FORGET_DEAD_SERVERS = """
delete from servers
where server_id <> $2 and heartbeat_at < now() - make_interval(secs => $1)
    and pg_postmaster_start_time() < now() - make_interval(secs => $1)
returning server_id
"""

ORPHANED_RUNS = """
select user_id, session_id, run_id from runs
where ended_at is null and not exists (select from servers where servers.server_id = runs.server_id)
order by created_at desc
limit 100
"""

# A run that began while its thread was being deleted.
FORGET_RUN_WITHOUT_THREAD = """
with forgotten as (
    delete from runs
    where user_id = $1 and session_id = $2 and run_id = $3
        and not exists (select from chat_sessions where user_id = $1 and session_id = $2)
    returning run_id
)
delete from run_events using forgotten where user_id = $1 and run_events.run_id = forgotten.run_id
"""

# What a server is said to be making for longer than a start takes.
RUNS_OF_SERVER = """
select user_id, session_id, run_id from runs
where server_id = $1 and ended_at is null and created_at < now() - interval '2 seconds'
"""

# An item that a run has stored itself: it may be further than its log.
STORED_BY_RUN = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and message_id = $3 and run_id = $4
"""

# A server that freezes while it ends a run gives its locks up, and one that meets such a lock goes on to the next run.
LIMIT_RECOVERY = """
select
    set_config('idle_in_transaction_session_timeout', '2s', true), set_config('lock_timeout', '1s', true)
"""

LOCK_THREAD = """
select run_epoch from chat_sessions where user_id = $1 and session_id = $2 and active_run_id = $3 for update
"""

# What happened on some threads after a position: as READ_LOG does it, with the state of runs that have ended.
READ_THREAD_EVENTS = """
select
    thread.user_id, thread.session_id, thread.log_position, event.position, event.kind, event.run_id, event.events,
    run.state
from unnest($1::text[], $2::text[], $3::bigint[]) as wanted (user_id, session_id, after)
join chat_sessions as thread using (user_id, session_id)
left join lateral (
    select position, kind, run_id, events from thread_events
    where user_id = wanted.user_id and session_id = wanted.session_id and position > wanted.after
    order by position
    limit 100
) as event on true
left join runs as run on run.user_id = thread.user_id and run.run_id = event.run_id
order by thread.user_id, thread.session_id, event.position
"""

FIND_THREAD_END = """
select log_position, active_run_id from chat_sessions where user_id = $1 and session_id = $2
"""
