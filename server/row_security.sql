-- A second wall between users, for ROW_LEVEL_SECURITY: a role that sees the rows of one user and no other, and nothing
-- at all as long as nobody has said of whom. The server becomes that role for each statement of the store.
--
-- The server runs this when it starts. Where its own user may not (it must own the tables, and may create roles), an
-- administrator runs it once in the server's database, with "current_user" replaced by that user.

do $$
declare
    name text;
begin
    begin
        if not exists (select from pg_roles where rolname = 'chatkit_grpc_user') then
            create role chatkit_grpc_user nologin;
        end if;
    exception when duplicate_object or unique_violation then
        null;  -- a server of another database was faster
    end;
    if not pg_has_role(current_user, 'chatkit_grpc_user', 'set') then
        execute format('grant chatkit_grpc_user to %I', current_user);
    end if;
    foreach name in array
        '{chat_sessions, chat_messages, attachments, feedback, runs, run_events, thread_events}'::text[]
    loop
        if not has_table_privilege('chatkit_grpc_user', name, 'select, insert, update, delete') then
            execute format('grant select, insert, update, delete on %I to chatkit_grpc_user', name);
        end if;
        if not exists (select from pg_class where oid = name::regclass and relrowsecurity) then
            execute format('alter table %I enable row level security', name);
        end if;
        if not exists (select from pg_policy where polrelid = name::regclass and polname = 'own_rows') then
            execute format(
                'create policy own_rows on %I to chatkit_grpc_user'
                ' using (user_id = current_setting(''chatkit_grpc.user_id'', true))',
                name
            );
        end if;
    end loop;
end
$$;
