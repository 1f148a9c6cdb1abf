-- Attachments whose bytes the server keeps, in these tables or in an S3-compatible store, and how much of them users have.
--
-- None of it rewrites a table. Where there are many attachments, the index takes as long as it takes to read them once.

alter table attachments
    add column storage text check (storage in ('postgres', 's3')),
    add column size bigint not null default 0,
    add column expected_size bigint,
    add column upload_epoch bigint not null default 0,
    add column uploaded_at timestamptz,
    add column expires_at timestamptz,
    add column etag text,
    add column preview bytea;

comment on column attachments.storage is 'Where the server keeps the bytes; null where the assistant keeps them itself';
comment on column attachments.size is 'How many bytes count as the user''s: those that were announced, or that have come so far';
comment on column attachments.expected_size is 'How many bytes were announced; null where nobody said';
comment on column attachments.upload_epoch is 'How many uploads were begun. Only the last one may write, and its bytes count';
comment on column attachments.uploaded_at is 'When all bytes were there and checked; null before';
comment on column attachments.expires_at is 'When it is swept; null while a thread shows it, and where storage is null';
comment on column attachments.etag is 'The version of the object in S3 that was checked';
comment on column attachments.preview is 'A small version of a picture, as WebP';

-- Pictures are compressed as they are.
alter table attachments alter column preview set storage external;

create index attachments_to_sweep on attachments (expires_at) where expires_at is not null;

create table attachment_chunks (
    user_id text collate "C" not null,
    attachment_id text collate "C" not null,
    upload_epoch bigint not null,
    number integer not null,
    bytes bytea not null,
    primary key (user_id, attachment_id, upload_epoch, number),
    foreign key (user_id, attachment_id) references attachments on delete cascade
);

alter table attachment_chunks alter column bytes set storage external;

comment on table attachment_chunks is 'The bytes of attachments with storage = postgres, in pieces';

create table attachment_usage (
    user_id text collate "C" not null primary key,
    files bigint not null,
    bytes bigint not null
) with (fillfactor = 50);

comment on table attachment_usage is 'How many attachments a user has, and of how many bytes: the sum over those with a storage';

create table attachment_leftovers (
    user_id text collate "C" not null,
    attachment_id text collate "C" not null,
    upload_epoch bigint not null,
    storage text not null,
    try_at timestamptz not null default now(),
    primary key (user_id, attachment_id)
);

comment on table attachment_leftovers is 'Attachments that are gone, but for bytes that are still to be deleted elsewhere';
comment on column attachment_leftovers.try_at is 'When that is tried next';

create table server_secrets (
    name text collate "C" not null primary key,
    value bytea not null
);

comment on table server_secrets is 'What all servers of this database must know and nobody else: keys, made by the first that needs one';
