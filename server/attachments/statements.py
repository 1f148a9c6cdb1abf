"""The statements about attachments. Each names its user, but for those of the sweep.

Locks are taken in one order: an attachment's row, then its user's row of attachment_usage.
"""

# Counts first: of two that come at once, the second one sees what the first has taken. $8 and $9 are the limits.
REGISTER = """
with room as (
    insert into attachment_usage as usage (user_id, files, bytes)
    select $1, 1, $7::bigint where $9::bigint = 0 or $7::bigint <= $9::bigint
    on conflict (user_id) do update set files = usage.files + 1, bytes = usage.bytes + excluded.bytes
    where ($8::bigint = 0 or usage.files < $8::bigint)
        and ($9::bigint = 0 or usage.bytes + excluded.bytes <= $9::bigint)
    returning user_id
)
insert into attachments
    (user_id, attachment_id, name, mime_type, attachment, storage, size, expected_size, expires_at)
select $1, $2, $3, $4, $5, $6, $7::bigint, $10, now() + make_interval(secs => $11) from room
returning attachment_id
"""

FIND = """
select storage, name, mime_type, size, expected_size, upload_epoch, uploaded_at is not null as is_uploaded, etag,
    session_id, attachment
from attachments
where user_id = $1 and attachment_id = $2
"""

# Of several attachments those that aren't there, and those whose bytes the server keeps and hasn't got.
FIND_AWAITED = """
select wanted.attachment_id, found.attachment_id is not null as is_known
from unnest($2::text[]) with ordinality as wanted (attachment_id, place)
left join attachments as found on found.user_id = $1 and found.attachment_id = wanted.attachment_id
where found.attachment_id is null or found.storage is not null and found.uploaded_at is null
order by place
"""

# An upload that nobody announced the size of is the only one of its attachment; of any there are not endlessly many.
BEGIN_UPLOAD = """
with begun as (
    update attachments set
        upload_epoch = upload_epoch + 1,
        expires_at = least(now(), created_at + make_interval(secs => $3)) + make_interval(secs => $3)
    where user_id = $1 and attachment_id = $2 and storage is not null and uploaded_at is null
        and (expected_size is not null or upload_epoch = 0) and upload_epoch < 20
    returning upload_epoch
), cleared as (
    delete from attachment_chunks
    where user_id = $1 and attachment_id = $2 and upload_epoch < (select upload_epoch from begun)
)
select upload_epoch from begun
"""

# More of a file whose size nobody announced. $5 is the limit of the user's bytes.
RESERVE = """
with locked as (
    select attachment_id from attachments
    where user_id = $1 and attachment_id = $2 and upload_epoch = $3 and uploaded_at is null
    for update
), room as (
    update attachment_usage set bytes = bytes + $4::bigint from locked
    where user_id = $1 and ($5::bigint = 0 or bytes + $4::bigint <= $5::bigint)
    returning user_id
), grown as (
    update attachments set size = size + $4::bigint from room
    where attachments.user_id = $1 and attachment_id = $2
)
select exists (select from locked) as is_last, exists (select from room) as has_room
"""

ADD_CHUNK = """
with locked as (
    select from attachments
    where user_id = $1 and attachment_id = $2 and upload_epoch = $3 and uploaded_at is null
    for share
)
insert into attachment_chunks (user_id, attachment_id, upload_epoch, number, bytes)
select $1, $2, $3, $4, $5 from locked
returning number
"""

LOAD_CHUNK = """
select bytes from attachment_chunks
where user_id = $1 and attachment_id = $2 and upload_epoch = $3 and number = $4
"""

# From here on it counts. A thread may show it already where its message came before its bytes.
FINISH_UPLOAD = """
with done as (
    update attachments set
        uploaded_at = now(), size = $4, name = $5, mime_type = $6, attachment = $7, preview = $8, etag = $9,
        expires_at = case when session_id is null then now() + make_interval(secs => $10) end
    where user_id = $1 and attachment_id = $2 and upload_epoch = $3 and uploaded_at is null
    returning attachment_id
), cleared as (
    delete from attachment_chunks using done
    where user_id = $1 and attachment_chunks.attachment_id = $2 and upload_epoch < $3
)
select attachment_id from done
"""

LOAD_PREVIEW = """
select preview, storage, uploaded_at is not null as is_uploaded from attachments
where user_id = $1 and attachment_id = $2
"""

# Those that nobody needs any longer, of all users, are gone from here on: nobody can bring one to a thread while its
# bytes are deleted. What is in another store, a server that uses it will find.
FORGET_EXPIRED = """
with due as (
    select user_id, attachment_id from attachments
    where expires_at < now() and storage = $1
    order by expires_at
    limit $2
    for update skip locked
), forgotten as (
    delete from attachments using due
    where attachments.user_id = due.user_id and attachments.attachment_id = due.attachment_id
    returning attachments.user_id, attachments.attachment_id, upload_epoch, storage, size
), freed as (
    update attachment_usage as usage set files = usage.files - gone.files, bytes = usage.bytes - gone.bytes
    from (select user_id, count(*) as files, sum(size) as bytes from forgotten group by user_id) as gone
    where usage.user_id = gone.user_id
), kept as (
    insert into attachment_leftovers (user_id, attachment_id, upload_epoch, storage)
    select user_id, attachment_id, upload_epoch, storage from forgotten where storage <> 'postgres'
    on conflict do nothing
)
select count(*) = $2 from forgotten
"""

FIND_LEFTOVERS = """
select user_id, attachment_id, upload_epoch from attachment_leftovers
where storage = $1 and try_at < now()
order by try_at
limit 200
"""

DELETE_LEFTOVER = """
delete from attachment_leftovers where user_id = $1 and attachment_id = $2
"""

# It is in nobody's way then.
PUT_LEFTOVER_OFF = """
update attachment_leftovers set try_at = now() + interval '1 hour' where user_id = $1 and attachment_id = $2
"""

# The key of all servers: the first that comes makes it.
MAKE_KEY = """
insert into server_secrets (name, value) values ($1, $2) on conflict (name) do nothing
"""

LOAD_KEY = """
select value from server_secrets where name = $1
"""
