-- Search: the words of each item and of each title, by user. And verdicts by the time at which they were given.
--
-- The indexes hold what a function makes of a column, so that no table is written anew and no row grows. Building them
-- keeps writers waiting, not readers, for a minute or two a million items. Where that is too long, do it beforehand
-- while the old servers run: make the function as it stands here, then both indexes as they stand here, but with
-- `create index concurrently`. This file finds them and has nothing left to do. (One whose building failed is there too,
-- and of no use: drop it, and begin again.)

-- The words of a text as lexemes, with their places. Each begins with its user's mark: so each user has a part of the
-- index to himself, and a word that everybody uses costs nobody anything. (Two users may have the same mark; whether a
-- row is the user's is asked beside it, always.) server/search/words.py makes the same of what is looked for:
--
--   * Letters count without case and accents, other forms of a character (full width, ligatures) as that character.
--   * A word is a run of letters and digits; its first 64 count.
--   * Of scripts that set no blanks, of Korean and of emoji each character counts together with the next one.
--   * Of a text the first 16,000 characters count, so that none is too long for a tsvector.
--
-- Lower case is that of a collation which knows all letters, whatever the database's own is.
do $do$
declare
    letters constant text := (
        select quote_ident(collname) from pg_collation
        where collname in ('pg_c_utf8', 'und-x-icu', 'default') and collnamespace = 'pg_catalog'::regnamespace
        order by array_position('{pg_c_utf8, und-x-icu, default}', collname::text)
        limit 1
    );
begin
    execute format($create$

create or replace function search_vector(user_id text, said text) returns tsvector
language plpgsql immutable strict parallel safe cost 2000
as $function$
declare
    mark constant text := '''' || left(md5(user_id), 8);
    folded text := left(said, 16000);
    vector text;
begin
    if octet_length(folded) = length(folded) then
        folded := regexp_replace(lower(folded) collate "C", '[^a-z0-9]+', ' ', 'g');
    else
        folded := regexp_replace(normalize(folded, nfkd) collate "C", '[\u0300-\u036f]+', '', 'g');
        folded := normalize(translate(lower(folded collate %1$s), 'ς', 'σ'), nfc);
        folded := regexp_replace(
            left(folded, 16000) collate "C",
            '[\x01-/:-@\[-`\{-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u02c2-\u02df\u0559-\u055f'
            '\u0589\u058a\u05be\u05c0\u05c3\u05f3\u05f4\u060c\u061b-\u061f\u066a-\u066d\u06d4\u0964\u0965\u0e4f'
            '\u0e5a\u0e5b\u104a-\u104f\u10fb\u1361-\u1368\u2000-\u206f\u20a0-\u20cf\u2190-\u25ff\u27c0-\u2bff'
            '\u2e00-\u2e7f\u3000-\u3004\u3008-\u3020\u3030\u303d-\u303f\u30a0\u30fb\ufe00-\ufe0f\ufeff\ufff9-\uffff]+',
            ' ', 'g'
        );
        folded := regexp_replace(
            folded,
            '([\u0e01-\u0e4e\u0e80-\u0eff\u1000-\u1049\u1780-\u17ff\u2600-\u27bf\u3005-\u3007\u3041-\u309f'
            '\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff'
            '\U0001f000-\U0001faff\U00020000-\U0003ffff])',
            E' \x01\\1 ', 'g'
        );
    end if;
    if strpos(folded, E'\x01') = 0 then
        select string_agg(mark || left(word, 64) || ''':' || place, ' ') into vector
        from unnest(string_to_array(trim(folded), ' ')) with ordinality as words (word, place);
    else
        -- Those that \x01 marks are single characters; the one that follows belongs to them.
        select string_agg(
            mark || case when word >= E'\x02' then left(word, 64) else
                substr(word, 2) || case when next < E'\x02' then substr(next, 2) else '' end
            end || ''':' || place, ' '
        ) into vector
        from (
            select word, place, lead(word) over (order by place) as next
            from (
                select word collate "C" as word, row_number() over (order by place) as place
                from unnest(string_to_array(folded, ' ')) with ordinality as words (word, place)
                where word <> ''
            ) as words
        ) as pairs;
    end if;
    return coalesce(vector, '')::tsvector;
end
$function$

    $create$, letters);
end
$do$;

comment on function search_vector is 'The words of a text of a user, as search finds them';

create index if not exists chat_messages_by_words on chat_messages
    using gin (search_vector(user_id, content)) with (gin_pending_list_limit = 256) where not hidden;

create index if not exists chat_sessions_by_words on chat_sessions
    using gin (search_vector(user_id, title)) with (gin_pending_list_limit = 256) where title is not null;

create index feedback_by_user on feedback (user_id, updated_at, session_id, message_id);

-- Of all users at once, for services that evaluate answers: this one alone doesn't start with the user.
create index feedback_by_time on feedback (updated_at, user_id, session_id, message_id);
