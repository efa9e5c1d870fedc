# Stages:  toolchain -> dependencies -> build -> runtime (the default)      docker build .
#                    -> test     unit tests, fails with them                docker build --target test .
#                    -> dev      hot reload, for docker-compose.yml         docker build --target dev .
#
# No `syntax` line: each engine since 25.0 knows all that is used here, so that building needs no frontend from a
# registry. Tags are exact, digests those of the multi-platform index; docs/decisions.md has the reasons and the figures.

# The version of rust-toolchain.toml: a test compares them.
ARG RUST_IMAGE=rust:1.95.0-slim-trixie@sha256:e14e87345b4d5964ddcc3491d27ee046a0f23820f340c3c1e24da6880141f7c0
# A static binary needs certificates, time zones and /etc/passwd; no shell, no libc.
ARG RUNTIME_IMAGE=gcr.io/distroless/static-debian13:nonroot@sha256:1c2c046bc09ed40fad370b599a0b1ae7987f55b01e247cf27a7c27cd97e5bbc7

FROM ${RUST_IMAGE} AS toolchain
# The image's own toolchain, whatever rust-toolchain.toml says: rustup would download its components.
# CARGO_INCREMENTAL: the layers are the cache. SQLX_OFFLINE: queries are checked against .sqlx, not a database.
ENV RUSTUP_TOOLCHAIN=${RUST_VERSION} CARGO_INCREMENTAL=0 SQLX_OFFLINE=true

FROM toolchain AS dependencies
# Writes the list of crates into the binary, where scanners of vulnerabilities find it.
# renovate: datasource=crate depName=cargo-auditable
ARG CARGO_AUDITABLE_VERSION=0.7.7
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo install --locked --version "${CARGO_AUDITABLE_VERSION}" cargo-auditable
# --target, even though it is this machine's own: the flags are then not those of build scripts and macros.
# Relative relocations in their short form: 0.3 MB less.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
# Absolute paths, since WORKDIR depends on SOURCE_DATE_EPOCH, which is the commit's time: each commit would compile every
# crate again.
COPY Cargo.toml Cargo.lock build.rs /src/
# An empty crate stands for ours, so that this layer outlives a change of the sources.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    mkdir /src/src && touch /src/src/lib.rs && echo 'fn main() {}' > /src/src/main.rs \
    && cargo auditable build --manifest-path /src/Cargo.toml --locked --release --bin app \
        --target "$(rustc --print host-tuple)" \
    && rm -r /src/src

FROM dependencies AS build
# With a star: without queries there is none.
COPY .sqlx* /src/.sqlx/
COPY migrations /src/migrations
COPY src /src/src
ARG REVISION=unknown
# The files of the context may be older than the empty crate: cargo would take that for ours.
# The binary's own time is a constant, which makes the layer one of its contents alone. With the commit's time it would
# not be: the cache of COPY goes by contents, and has the layer with the time of whoever came first.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    touch /src/src/lib.rs /src/src/main.rs \
    && GIT_REVISION=${REVISION} cargo auditable build --manifest-path /src/Cargo.toml --locked --release --bin app \
        --target "$(rustc --print host-tuple)" \
    && cp "/src/target/$(rustc --print host-tuple)/release/app" /app \
    && touch --date=@0 /app

FROM toolchain AS test
COPY Cargo.toml Cargo.lock build.rs /src/
COPY .sqlx* /src/.sqlx/
COPY migrations /src/migrations
COPY src /src/src
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    touch /src/build.rs /src/src/lib.rs /src/src/main.rs \
    && cargo test --manifest-path /src/Cargo.toml --locked --lib --bins

FROM toolchain AS dev
# entr starts a command again when a file changes. Development only, so the version may be the release's current one:
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends entr && rm -rf /var/lib/apt/lists/*
# The sources are mounted read-only; what is built goes into a volume.
WORKDIR /src
ENV CARGO_TARGET_DIR=/target APP__HTTP__ADDRESS=0.0.0.0
EXPOSE 8080
CMD ["scripts/watch"]

FROM ${RUNTIME_IMAGE} AS runtime
ARG REVISION=unknown
ARG VERSION=0.0.0
ARG CREATED=1970-01-01T00:00:00Z
ARG NAME=app
ARG SOURCE=
LABEL org.opencontainers.image.title="${NAME}" \
      org.opencontainers.image.description="A production web service template" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
COPY --from=build --chown=0:0 --chmod=0555 /app /app
# A container's own address is what others connect to; 127.0.0.1, the default elsewhere, would be deaf.
ENV APP__HTTP__ADDRESS=0.0.0.0
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
WORKDIR /
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --start-interval=1s --retries=3 CMD ["/app", "healthcheck"]
ENTRYPOINT ["/app"]
CMD ["serve"]
