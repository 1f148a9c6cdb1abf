-- A second wall between users, for ROW_LEVEL_SECURITY: a role that sees the rows of one user and no other, and nothing
-- at all as long as nobody has said of whom. The server becomes that role for each statement of the store.
--
-- The server runs this when it starts. It must own the tables, since others than their owner see no rows any more but as
-- that role. Where it may not create roles, an administrator first does that (the role is this database's own):
--
--     create role chatkit_grpc_user_OID nologin;      -- OID: select oid from pg_database where datname = 'NAME'
--     grant chatkit_grpc_user_OID to SERVERS_USER;    -- from PostgreSQL 16 on: with inherit false
--
-- To take the wall down again: alter table NAME disable row level security, for each of the tables below.

do $$
declare
    name text;
    member constant text := (
        select 'chatkit_grpc_user_' || oid from pg_database where datname = current_database()
    );
    tables constant text[] :=
        '{chat_sessions, chat_messages, attachments, attachment_chunks, attachment_usage, feedback, runs, run_events,'
        ' thread_events}';
begin
    perform set_config('lock_timeout', '5s', true);
    if exists (
        select from pg_class
        where oid = any (tables::regclass[]) and not pg_has_role(relowner, 'usage')
    ) then
        raise insufficient_privilege using message = 'the tables belong to somebody else';
    end if;
    begin
        if not exists (select from pg_roles where rolname = member) then
            execute format('create role %I nologin', member);
        end if;
    exception when duplicate_object or unique_violation then
        null;  -- another server was faster
    end;
    if current_setting('server_version_num')::integer >= 160000 then
        if not pg_has_role(member, 'set') then
            execute format('grant %I to %I with inherit false, set true', member, current_user);
        end if;
    elsif not pg_has_role(member, 'member') then
        execute format('grant %I to %I', member, current_user);
    end if;
    if not has_schema_privilege(member, current_schema(), 'usage') then
        execute format('grant usage on schema %I to %I', current_schema(), member);
    end if;
    foreach name in array tables loop
        if not has_table_privilege(member, name, 'select')
            or not has_table_privilege(member, name, 'insert')
            or not has_table_privilege(member, name, 'update')
            or not has_table_privilege(member, name, 'delete')
        then
            execute format('grant select, insert, update, delete on %I to %I', name, member);
        end if;
        if not exists (select from pg_class where oid = name::regclass and relrowsecurity) then
            execute format('alter table %I enable row level security', name);
        end if;
        if not exists (select from pg_policy where polrelid = name::regclass and polname = 'own_rows') then
            execute format(
                'create policy own_rows on %I to %I'
                ' using (user_id = current_setting(''chatkit_grpc.user_id'', true))',
                name, member
            );
        end if;
    end loop;
    -- As the tables' owner, since PostgreSQL finds no row that a policy guards by an index whose operator might tell of
    -- others' rows: so it names the user itself, and is for nobody but who has become the role of this wall.
    if to_regprocedure('search_hits(tsquery)') is null then
        execute format(
            $create$
            create function search_hits(wanted tsquery)
            returns table (session_id text, message_id text, "position" bigint, said_at timestamptz)
            language sql stable security definer set search_path = %I, pg_temp
            as $function$
                select session_id, message_id, position, "timestamp"
                from chat_messages
                where user_id = current_setting('chatkit_grpc.user_id', true) and not hidden
                    and search_vector(user_id, content) @@ wanted
                union all
                select session_id, null, 0, created_at
                from chat_sessions
                where user_id = current_setting('chatkit_grpc.user_id', true) and title is not null
                    and search_vector(user_id, title) @@ wanted
            $function$
            $create$,
            current_schema()
        );
        revoke execute on function search_hits(tsquery) from public;
    end if;
    if not has_function_privilege(member, 'search_hits(tsquery)', 'execute') then
        execute format('grant execute on function search_hits(tsquery) to %I', member);
    end if;
end
$$;
