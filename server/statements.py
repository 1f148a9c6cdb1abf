"""The statements of the store. Each names its user: what belongs to another doesn't exist.

What a run writes names its epoch too, and finds no thread once the lease has passed to another run or to nobody. What
is written outside of runs has no epoch.
"""

# A thread's row, as far as the SDK knows it. An update leaves alone how far it has counted, and when it was created,
# but for the thread's first run: the row was made with its lease, and the time that its page is told comes now.
SAVE_THREAD = """
insert into chat_sessions
    (user_id, session_id, title, status, status_reason, allowed_image_domains, metadata, created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (user_id, session_id) do update set
    title = excluded.title,
    status = excluded.status,
    status_reason = excluded.status_reason,
    allowed_image_domains = excluded.allowed_image_domains,
    metadata = excluded.metadata,
    created_at = case when $9 = 1 then excluded.created_at else chat_sessions.created_at end,
    updated_at = now()
where $9::bigint is null or chat_sessions.run_epoch = $9 and chat_sessions.active_run_id is not null
returning session_id
"""

# Only what the caller changed, since others write to the thread meanwhile. A title that isn't the one the caller knew
# was given by the user during the run, and stays. A thread that was deleted meanwhile isn't made again.
UPDATE_THREAD = """
update chat_sessions set
    title = case when 'title' = any ($3::text[]) and title is not distinct from $4 then $5 else title end,
    status = case when $3 && '{status, status_reason}' then $6 else status end,
    status_reason = case when $3 && '{status, status_reason}' then $7 else status_reason end,
    allowed_image_domains = case when 'allowed_image_domains' = any ($3) then $8 else allowed_image_domains end,
    metadata = case when 'metadata' = any ($3) then $9 else metadata end,
    updated_at = now()
where user_id = $1 and session_id = $2
    and ($10::bigint is null or run_epoch = $10 and active_run_id is not null)
returning session_id, title
"""

RENAME_THREAD = """
update chat_sessions set title = $3, updated_at = now()
where user_id = $1 and session_id = $2
returning session_id, title, status, status_reason, allowed_image_domains, metadata, created_at
"""

# Something happened on a thread that no run's events tell of, and whoever watches shall see it.
RECORD_CHANGE = """
with thread as (
    update chat_sessions set log_position = log_position + 1
    where user_id = $1 and session_id = $2
        and ($4::bigint is null or run_epoch = $4 and active_run_id is not null)
    returning log_position
), event as (
    insert into thread_events (user_id, session_id, position, kind, events)
    select $1, $2, log_position, 'changed', $3 from thread
)
select log_position, pg_notify('chatkit_grpc', 'log') from thread
"""

LOAD_THREAD = """
select session_id, title, status, status_reason, allowed_image_domains, metadata, created_at
from chat_sessions
where user_id = $1 and session_id = $2
"""

# A page after a thread. Without a cursor it starts before the first; an unknown cursor gives no rows at all.
LOAD_THREADS_ASC = """
select session_id, title, status, status_reason, allowed_image_domains, metadata, created_at
from chat_sessions
where user_id = $1 and (created_at, session_id) > (
    select created_at, session_id from chat_sessions where user_id = $1 and session_id = $2
    union all
    select timestamptz '-infinity', '' where $2::text is null
)
order by created_at, session_id
limit $3
"""

LOAD_THREADS_DESC = """
select session_id, title, status, status_reason, allowed_image_domains, metadata, created_at
from chat_sessions
where user_id = $1 and (created_at, session_id) < (
    select created_at, session_id from chat_sessions where user_id = $1 and session_id = $2
    union all
    select timestamptz 'infinity', '' where $2::text is null
)
order by created_at desc, session_id desc
limit $3
"""

# The items go with it, and with them their feedback. Attachments stay until the next sweep, since their bytes may have
# to be deleted elsewhere. With $3 only a thread that nothing was written to for so many seconds. FORGET_RUNS comes
# after it.
DELETE_THREAD = """
with deleted as (
    delete from chat_sessions
    where user_id = $1 and session_id = $2
        and ($3::float8 is null or active_run_id is null and updated_at < now() - make_interval(secs => $3))
    returning session_id
), unlinked as (
    update attachments set session_id = null, expires_at = case when storage is not null then now() end from deleted
    where attachments.user_id = $1 and attachments.session_id = deleted.session_id
)
select session_id, pg_notify('chatkit_grpc', 'log') from deleted
"""

# The runs of a thread that is gone, with all that was logged. A statement of its own: it is to see the run too that
# began while the thread was being deleted.
FORGET_RUNS = """
with forgotten_changes as (
    delete from thread_events where user_id = $1 and session_id = $2
), forgotten as (
    delete from runs where user_id = $1 and session_id = $2 returning run_id
)
delete from run_events using forgotten where user_id = $1 and run_events.run_id = forgotten.run_id
"""

# An item gets the position that its thread's row gives out: that row is locked meanwhile, so no two get the same.
# An item that is there already keeps its place. Without a thread no row is written and none comes back. What the agent
# did before it ($11) is written with it, or added to what was.
SAVE_ITEM = """
with thread as (
    update chat_sessions set next_position = next_position + 1, updated_at = now()
    where user_id = $1 and session_id = $2
        and ($10::bigint is null or run_epoch = $10 and active_run_id is not null)
    returning next_position - 1 as position
)
insert into chat_messages
    (user_id, session_id, message_id, position, item_type, sender_type, content, "timestamp", item, run_id,
    agent_record)
select $1, $2, $3, thread.position, $4, $5, $6, $7, $8, $9, $11 from thread
on conflict (user_id, session_id, message_id) do update set
    item_type = excluded.item_type,
    sender_type = excluded.sender_type,
    content = excluded.content,
    "timestamp" = excluded."timestamp",
    item = excluded.item,
    agent_record = coalesce(chat_messages.agent_record || excluded.agent_record, excluded.agent_record,
        chat_messages.agent_record)
returning position
"""

# As SAVE_ITEM, but one that is there already is left alone: then no row comes back, as without a thread. The thread
# shows its attachments ($10) from then on.
APPEND_ITEM = """
with thread as (
    update chat_sessions set next_position = next_position + 1, updated_at = now(), log_position = log_position + 1
    where user_id = $1 and session_id = $2
        and not exists (select from chat_messages where user_id = $1 and session_id = $2 and message_id = $3)
    returning next_position - 1 as position, log_position
), event as (
    insert into thread_events (user_id, session_id, position, kind, events)
    select $1, $2, log_position, 'changed', $9 from thread
), linked as (
    update attachments set session_id = $2, expires_at = null from thread
    where user_id = $1 and attachment_id = any ($10::text[])
)
insert into chat_messages
    (user_id, session_id, message_id, position, item_type, sender_type, content, "timestamp", item)
select $1, $2, $3, thread.position, $4, $5, $6, $7, $8 from thread
returning position, pg_notify('chatkit_grpc', 'log')
"""

LOAD_ITEM = """
select message_id, item from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
"""

# The items that a run left on its thread, for the replay of one whose log is gone.
LOAD_ITEMS_OF_RUN = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and run_id = $3 and not hidden
order by position
limit 1000
"""

# The thread comes back whether it had the item or not.
DELETE_ITEM = """
with thread as (
    update chat_sessions set updated_at = now()
    where user_id = $1 and session_id = $2
        and ($4::bigint is null or run_epoch = $4 and active_run_id is not null)
    returning session_id
), deleted as (
    delete from chat_messages using thread
    where user_id = $1 and chat_messages.session_id = $2 and message_id = $3
)
select session_id from thread
"""

# What a run answers again: the user's message that an item is, else the next one after it, else the last one before it.
# All that came later is deleted, and comes back.
RETRY_AFTER_ITEM = """
with thread as (
    update chat_sessions set updated_at = now()
    where user_id = $1 and session_id = $2 and run_epoch = $4 and active_run_id is not null
    returning session_id
), chosen as (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
), message as (
    select message_id, position from chat_messages
    where user_id = $1 and session_id = $2 and item_type = 'user_message' and exists (select from chosen)
    order by
        position >= (select position from chosen) desc,
        case when position >= (select position from chosen) then position else -position end
    limit 1
), deleted as (
    delete from chat_messages using thread, message
    where user_id = $1 and chat_messages.session_id = $2 and chat_messages.position > message.position
    returning chat_messages.message_id, chat_messages.position, chat_messages.hidden
)
select
    exists (select from thread) as has_lease,
    exists (select from chosen) as has_item,
    (select message_id from message) as message_id,
    (select array_agg(message_id order by position) from deleted where not hidden) as removed
"""

# A page after an item, as for threads. The cursor may be hidden where the page shows no hidden items.
LOAD_ITEMS_ASC = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and position > (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
    union all
    select 0 where $3::text is null
)
order by position
limit $4
"""

LOAD_ITEMS_DESC = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and position < (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
    union all
    select 9223372036854775807 where $3::text is null
)
order by position desc
limit $4
"""

# A page of what a model is told, newest first: hidden items too, and what the agent did beside them.
LOAD_HISTORY = """
select message_id, item, agent_record from chat_messages
where user_id = $1 and session_id = $2 and position < (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
    union all
    select 9223372036854775807 where $3::text is null
)
order by position desc
limit $4
"""

LOAD_VISIBLE_ITEMS_ASC = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and not hidden and position > (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
    union all
    select 0 where $3::text is null
)
order by position
limit $4
"""

LOAD_VISIBLE_ITEMS_DESC = """
select message_id, item from chat_messages
where user_id = $1 and session_id = $2 and not hidden and position < (
    select position from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
    union all
    select 9223372036854775807 where $3::text is null
)
order by position desc
limit $4
"""

# Which of some items a client can't see: the first that isn't there.
MISSING_ITEM = """
select
    exists (select from chat_sessions where user_id = $1 and session_id = $2) as thread,
    (
        select min(wanted.message_id) from unnest($3::text[]) as wanted (message_id)
        where wanted.message_id not in (
            select message_id from chat_messages
            where user_id = $1 and session_id = $2 and not hidden and message_id = any ($3::text[])
        )
    ) as missing
"""

# Why a page is empty.
THREAD_AND_ITEM_EXIST = """
select
    exists (select from chat_sessions where user_id = $1 and session_id = $2) as thread,
    exists (select from chat_messages where user_id = $1 and session_id = $2 and message_id = $3) as item
"""

# Under a lease the thread's row is locked against whoever would take it away meanwhile, and an attachment that was
# deleted since it was looked at isn't made again.
SAVE_ATTACHMENT = """
with lease as (
    select from chat_sessions
    where user_id = $1 and session_id = $3 and run_epoch = $7 and active_run_id is not null
    for share
), saved as (
    insert into attachments (user_id, attachment_id, session_id, name, mime_type, attachment)
    select $1, $2, $3, $4, $5, $6
    where $7::bigint is null
        or exists (select from lease) and exists (select from attachments where user_id = $1 and attachment_id = $2)
    on conflict (user_id, attachment_id) do update set
        session_id = excluded.session_id,
        name = excluded.name,
        mime_type = excluded.mime_type,
        attachment = excluded.attachment,
        expires_at = case when excluded.session_id is null then attachments.expires_at end
    returning attachment_id
)
select exists (select from saved) as is_saved, exists (select from lease) as has_lease
"""

LOAD_ATTACHMENT = """
select session_id, attachment from attachments where user_id = $1 and attachment_id = $2
"""

# With it go its bytes, where they are in this database.
DELETE_ATTACHMENT = """
with deleted as (
    delete from attachments where user_id = $1 and attachment_id = $2 returning attachment_id, storage, size
), freed as (
    update attachment_usage set files = files - 1, bytes = bytes - deleted.size from deleted
    where user_id = $1 and deleted.storage is not null
)
select attachment_id from deleted
"""

# All or nothing: an item that isn't there comes back, and nothing is written. The items are locked in one order, and
# can't be deleted meanwhile.
SAVE_FEEDBACK = """
with wanted as (
    select distinct unnest($3::text[]) collate "C" as message_id
), found as (
    select message_id from chat_messages
    where user_id = $1 and session_id = $2 and not hidden and message_id = any ($3::text[])
    order by message_id
    for key share
), saved as (
    insert into feedback (user_id, session_id, message_id, kind)
    select $1, $2, message_id, $4 from found
    where (select count(*) from found) = (select count(*) from wanted)
    on conflict (user_id, session_id, message_id) do update set kind = excluded.kind, updated_at = now()
)
select
    exists (select from chat_sessions where user_id = $1 and session_id = $2) as thread,
    (select min(message_id) from wanted where message_id not in (select message_id from found)) as missing
"""
