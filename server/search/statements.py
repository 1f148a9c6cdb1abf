"""The statement that finds a page of threads, with the newest of their hits."""

_OWN_HITS = """
with hits as materialized (
    select session_id, message_id, position, "timestamp" as said_at
    from chat_messages
    where user_id = $1 and not hidden and search_vector(user_id, content) @@ $2::text::tsquery
        and ($3::timestamptz is null or "timestamp" <= $3)
    union all
    select session_id, null, 0, created_at
    from chat_sessions
    where user_id = $1 and title is not null and search_vector(user_id, title) @@ $2::text::tsquery
)"""

# Behind the wall (row_security.sql) PostgreSQL looks at each row of the user in place of the index, since it doesn't
# know the operator to keep quiet about rows of others. This function looks into the index for that one user.
_HITS_BEHIND_THE_WALL = """
with hits as materialized (
    select session_id, message_id, position, said_at
    from search_hits($2::text::tsquery)
    where $1::text is not null and ($3::timestamptz is null or message_id is null or said_at <= $3)
)"""

# Threads whose title matches first, then those with the newest hit. A title without an item counts from when its thread
# was begun. $3 keeps what is said while somebody leafs through the pages out of the later ones: nothing moves.
_PAGE = """
, found as materialized (
    select session_id, bool_or(message_id is null) as by_title, max(said_at) as newest, count(message_id) as item_count
    from hits
    group by session_id
), page as materialized (
    select session_id, by_title, newest, item_count, (select max(newest) from found) as newest_of_all
    from found
    where $4::boolean is null or (by_title, newest, session_id) < ($4, $5::timestamptz, $6::text collate "C")
    order by by_title desc, newest desc, session_id desc
    limit $7
), best as materialized (
    select *
    from (
        select session_id, message_id, position, row_number() over (partition by session_id order by position desc) as n
        from hits join page using (session_id)
        where message_id is not null
    ) as ranked
    where n <= $8
)
select
    thread.session_id, thread.title, thread.status, thread.status_reason, thread.allowed_image_domains, thread.metadata,
    thread.created_at, page.by_title, page.newest, page.item_count,
    greatest(now(), page.newest_of_all) as as_of,
    item.message_id, item.sender_type, item."timestamp", left(item.content, $9) as content
from page
join chat_sessions as thread on thread.user_id = $1 and thread.session_id = page.session_id
left join best on best.session_id = page.session_id
left join chat_messages as item
    on item.user_id = $1 and item.session_id = best.session_id and item.message_id = best.message_id
order by page.by_title desc, page.newest desc, page.session_id desc, best.position desc
"""

SEARCH = _OWN_HITS + _PAGE
SEARCH_BEHIND_THE_WALL = _HITS_BEHIND_THE_WALL + _PAGE
