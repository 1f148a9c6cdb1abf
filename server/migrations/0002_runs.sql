-- Runs, their log, what else happens on a thread, and the servers that make them.

alter table chat_sessions
    add column active_run_id text collate "C",
    add column run_epoch bigint not null default 0,
    add column log_position bigint not null default 0;

comment on column chat_sessions.active_run_id is 'The run that holds the thread''s lease; null where none is active';
comment on column chat_sessions.run_epoch is 'How many runs the thread has had. A run writes only while this is its epoch';
comment on column chat_sessions.log_position is 'The position of the last row in thread_events';

alter table chat_messages add column run_id text collate "C";

comment on column chat_messages.run_id is 'The run that added the item; null where none did';

create table servers (
    server_id text collate "C" primary key,
    started_at timestamptz not null default now(),
    heartbeat_at timestamptz not null default now()
);

comment on table servers is 'The servers that live. One without a heartbeat for LEASE_SECONDS is dead, and its row is deleted';

create table runs (
    user_id text collate "C" not null,
    run_id text collate "C" not null,
    session_id text collate "C" not null,
    epoch bigint not null,
    server_id text collate "C" not null,
    state text not null default 'running'
        check (state in ('running', 'completed', 'cancelled', 'failed', 'interrupted')),
    creates_thread boolean not null,
    request_id text collate "C",
    request_hash bytea,
    request_expires_at timestamptz,
    created_at timestamptz not null default now(),
    cancel_requested_at timestamptz,
    watched_until timestamptz,
    ended_at timestamptz,
    last_sequence bigint,
    error bytea,
    has_log boolean not null default true,
    primary key (user_id, run_id),
    check ((state = 'running') = (ended_at is null))
) with (fillfactor = 80);

comment on table runs is 'One answer each, from its start until a day after its end';
comment on column runs.server_id is 'The server that makes or made it; not a foreign key, since servers are forgotten earlier';
comment on column runs.request_hash is 'SHA-256 of the request, by which a repeated one is told from another with the same id';
comment on column runs.request_expires_at is 'Until when request_id counts';
comment on column runs.watched_until is 'Until when servers other than its own have promised that somebody watches it';
comment on column runs.last_sequence is 'The number of its last event; null until it has ended';
comment on column runs.error is 'What it failed with, as a google.rpc.Status';
comment on column runs.has_log is 'Whether run_events still has its events';

-- No foreign keys from here to chat_sessions: each costs a look for every row, and what deletes threads names these too.
-- At most one run of a thread is active since chat_sessions.active_run_id holds one.
create unique index runs_by_request on runs (user_id, request_id) where request_id is not null;
create index runs_by_session on runs (user_id, session_id);
create index runs_by_server on runs (server_id) where ended_at is null;
create index runs_to_sweep on runs (ended_at) where ended_at is not null and has_log;

create table run_events (
    user_id text collate "C" not null,
    run_id text collate "C" not null,
    last_sequence bigint not null,
    first_sequence bigint not null,
    events bytea not null,
    primary key (user_id, run_id, last_sequence)
) with (toast_tuple_target = 8160);

-- Written once, read seldom, and gone in minutes: not worth compressing.
alter table run_events alter column events set storage external;

comment on table run_events is 'What runs said, in pieces';
comment on column run_events.events is 'An EventBatch of protobuf with nothing but its events';

create table thread_events (
    user_id text collate "C" not null,
    session_id text collate "C" not null,
    position bigint not null,
    kind text not null check (kind in ('run_started', 'run_ended', 'changed')),
    run_id text collate "C",
    events bytea,
    created_at timestamptz not null default now(),
    primary key (user_id, session_id, position)
);

comment on table thread_events is 'What happened on threads: runs that began and ended, and what was changed outside of runs';
comment on column thread_events.events is 'What was changed, as in run_events';

create index thread_events_by_age on thread_events (created_at);
