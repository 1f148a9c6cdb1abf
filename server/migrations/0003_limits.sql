-- How much users may do, counted for all servers together.

-- Not worth the write-ahead log: after a crash of the database all count from zero again.
create unlogged table rate_limits (
    user_id text collate "C" not null,
    name text collate "C" not null,
    full_at timestamptz not null,
    primary key (user_id, name)
) with (fillfactor = 50);

comment on table rate_limits is 'What users have used of their rate limits; no row is as good as a full allowance';
comment on column rate_limits.name is 'Of what: "runs" or "calls"';
comment on column rate_limits.full_at is 'When the allowance will be full again';

create table token_usage (
    user_id text collate "C" not null,
    day date not null,
    tokens bigint not null,
    primary key (user_id, day)
);

comment on table token_usage is 'How many tokens of models a user''s runs took, by the day (UTC) of their end';

alter table runs add column slot smallint;

comment on column runs.slot is 'Which of its user''s places it has, where he may have so many runs at once; null without a limit';

-- What makes the limit hold, whatever is started at the same time.
create unique index runs_by_slot on runs (user_id, slot) where ended_at is null and slot is not null;
