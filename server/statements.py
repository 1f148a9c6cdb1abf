"""The statements of the store. Each names its user: what belongs to another doesn't exist."""

# A thread's row, as far as the SDK knows it. An update leaves alone when it was created and how far it has counted.
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
    updated_at = now()
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
returning session_id
"""

RENAME_THREAD = """
update chat_sessions set title = $3, updated_at = now()
where user_id = $1 and session_id = $2
returning session_id, title, status, status_reason, allowed_image_domains, metadata, created_at
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

# The items go with it, and with them their feedback. Attachments stay: their files have to be deleted elsewhere.
DELETE_THREAD = """
with deleted as (
    delete from chat_sessions where user_id = $1 and session_id = $2 returning session_id
), unlinked as (
    update attachments set session_id = null from deleted
    where attachments.user_id = $1 and attachments.session_id = deleted.session_id
)
select session_id from deleted
"""

# An item gets the position that its thread's row gives out: that row is locked meanwhile, so no two get the same.
# An item that is there already keeps its place. Without a thread no row is written and none comes back.
SAVE_ITEM = """
with thread as (
    update chat_sessions set next_position = next_position + 1, updated_at = now()
    where user_id = $1 and session_id = $2
    returning next_position - 1 as position
)
insert into chat_messages
    (user_id, session_id, message_id, position, item_type, sender_type, content, "timestamp", item)
select $1, $2, $3, thread.position, $4, $5, $6, $7, $8 from thread
on conflict (user_id, session_id, message_id) do update set
    item_type = excluded.item_type,
    sender_type = excluded.sender_type,
    content = excluded.content,
    "timestamp" = excluded."timestamp",
    item = excluded.item
returning position
"""

LOAD_ITEM = """
select message_id, item from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
"""

DELETE_ITEM = """
delete from chat_messages where user_id = $1 and session_id = $2 and message_id = $3
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

SAVE_ATTACHMENT = """
insert into attachments (user_id, attachment_id, session_id, name, mime_type, attachment)
values ($1, $2, $3, $4, $5, $6)
on conflict (user_id, attachment_id) do update set
    session_id = excluded.session_id,
    name = excluded.name,
    mime_type = excluded.mime_type,
    attachment = excluded.attachment
"""

LOAD_ATTACHMENT = """
select session_id, attachment from attachments where user_id = $1 and attachment_id = $2
"""

DELETE_ATTACHMENT = """
delete from attachments where user_id = $1 and attachment_id = $2 returning attachment_id
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
