-- The table of tests/workload/notes.rs.
create table notes (
    id bigint generated always as identity primary key,
    text text not null
);
