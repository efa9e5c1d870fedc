-- EXAMPLE DOMAIN: goes with src/links.

create table links (
    -- Rises with time, so that it orders pages; it is not shown.
    id bigint generated always as identity primary key,
    slug text not null constraint links_slug_key unique
        constraint links_slug_format check (slug ~ '^[A-Za-z0-9_-]{1,64}$'),
    url text not null constraint links_url_size check (octet_length(url) <= 2048),
    -- The ETag; each change adds 1.
    version integer not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

-- Answers to requests with an Idempotency-Key, kept for a day.
create table idempotency_keys (
    key text primary key,
    request jsonb not null,
    -- Null only inside of the transaction that creates it.
    response jsonb,
    created_at timestamptz not null default now()
);

create index idempotency_keys_created_at on idempotency_keys (created_at);
