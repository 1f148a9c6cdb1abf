-- Threads, their items, attachments and feedback.
--
-- Every key starts with user_id: a user's data lies together, and a distributed PostgreSQL may spread users over nodes.
-- Ids are unique per user (an item's id: per user and thread), never in the whole table, since callers choose them too.
-- They sort by bytes (collate "C"), so that an index outlives a change of the system's collations.

create table chat_sessions (
    user_id text collate "C" not null,
    session_id text collate "C" not null,
    title text,
    status text not null default 'active',
    status_reason text,
    allowed_image_domains text[],
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    next_position bigint not null default 1,
    primary key (user_id, session_id)
) with (fillfactor = 80);  -- each new item updates its thread's row: room on the page keeps the indexes out of it

comment on table chat_sessions is 'A thread of ChatKit';
comment on column chat_sessions.session_id is 'The thread''s id';
comment on column chat_sessions.updated_at is 'When the thread or one of its items was last written';
comment on column chat_sessions.next_position is 'The position that the thread''s next item gets';

create index chat_sessions_by_creation on chat_sessions (user_id, created_at, session_id);

create table chat_messages (
    user_id text collate "C" not null,
    session_id text collate "C" not null,
    message_id text collate "C" not null,
    position bigint not null,
    item_type text not null,
    sender_type text not null check (sender_type in ('user', 'assistant', 'tool')),
    content text not null default '',
    "timestamp" timestamptz not null,
    metadata jsonb not null default '{}',
    hidden boolean not null generated always as (item_type in ('hidden_context_item', 'sdk_hidden_context')) stored,
    item json not null,
    primary key (user_id, session_id, message_id),
    unique (user_id, session_id, position),
    foreign key (user_id, session_id) references chat_sessions on delete cascade
);

comment on table chat_messages is 'An item of a thread, of any kind';
comment on column chat_messages.message_id is 'The item''s id';
comment on column chat_messages.position is 'The order within the thread; there may be gaps';
comment on column chat_messages.content is 'What the item says as plain text, for search and analytics; item is what counts';
comment on column chat_messages.metadata is 'Yours: never written here';
comment on column chat_messages.hidden is 'Whether clients must not see the item';
comment on column chat_messages.item is 'The item as ChatKit''s JSON. Not jsonb, which changes the order of keys, numbers, and refuses \u0000';

-- Pages for clients: hidden items cost them nothing, however many there are.
create unique index chat_messages_visible on chat_messages (user_id, session_id, position) where not hidden;

create table attachments (
    user_id text collate "C" not null,
    attachment_id text collate "C" not null,
    session_id text collate "C",
    name text not null,
    mime_type text not null,
    created_at timestamptz not null default now(),
    attachment json not null,
    primary key (user_id, attachment_id)
);

comment on column attachments.session_id is 'The thread that shows it; null before, and after that thread was deleted';
comment on column attachments.attachment is 'The attachment as ChatKit''s JSON, integration-only metadata included';

create index attachments_by_session on attachments (user_id, session_id) where session_id is not null;

create table feedback (
    user_id text collate "C" not null,
    session_id text collate "C" not null,
    message_id text collate "C" not null,
    kind text not null check (kind in ('positive', 'negative')),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (user_id, session_id, message_id),
    foreign key (user_id, session_id, message_id) references chat_messages on delete cascade
);
