# Stages:  toolchain -> dependencies -> build -> runtime (default)          docker build .
#                    -> test     runs the unit tests                        docker build --target test .
#                    -> dev      hot reload, for docker-compose.yml         docker build --target dev .
#
# No `syntax` line: every engine since 25.0 supports all features used here, so no frontend has to be pulled. Tags are
# exact; digests are those of the multi-platform index. docs/decisions.md has the reasons and the figures.

# The version of rust-toolchain.toml; a test compares them.
ARG RUST_IMAGE=rust:1.95.0-slim-trixie@sha256:e14e87345b4d5964ddcc3491d27ee046a0f23820f340c3c1e24da6880141f7c0
# A static binary needs certificates, time zones and /etc/passwd, but no shell and no libc.
ARG RUNTIME_IMAGE=gcr.io/distroless/static-debian13:nonroot@sha256:1c2c046bc09ed40fad370b599a0b1ae7987f55b01e247cf27a7c27cd97e5bbc7

FROM ${RUST_IMAGE} AS toolchain
# RUSTUP_TOOLCHAIN: the toolchain of the image; otherwise rustup downloads the components of rust-toolchain.toml.
# CARGO_INCREMENTAL: the layers are the cache. SQLX_OFFLINE: queries are checked against .sqlx, not a database.
ENV RUSTUP_TOOLCHAIN=${RUST_VERSION} CARGO_INCREMENTAL=0 SQLX_OFFLINE=true

FROM toolchain AS dependencies
# Embeds the list of crates in the binary, where vulnerability scanners find it.
# renovate: datasource=crate depName=cargo-auditable
ARG CARGO_AUDITABLE_VERSION=0.7.7
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo install --locked --version "${CARGO_AUDITABLE_VERSION}" cargo-auditable
# --target is set even though it is the host's: otherwise the flags would apply to build scripts and macros too.
# Compact relative relocations save 0.3 MB.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
# Absolute paths: WORKDIR would depend on SOURCE_DATE_EPOCH, the commit time, so each commit would recompile every crate.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
COPY Cargo.toml Cargo.lock build.rs /src/
# An empty crate instead of the service, so that changed sources do not invalidate this layer.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    mkdir /src/src && touch /src/src/lib.rs && echo 'fn main() {}' > /src/src/main.rs \
    && cargo auditable build --manifest-path /src/Cargo.toml --locked --release --bin app \
        --target "$(rustc --print host-tuple)" \
    && rm -r /src/src

FROM dependencies AS build
# The wildcard allows a project without queries, which has no .sqlx.
COPY .sqlx* /src/.sqlx/
COPY migrations /src/migrations
COPY src /src/src
ARG REVISION=unknown
# touch: the sources may be older than the empty crate, which cargo would then keep.
# The binary has a constant time, so that the layer depends only on its contents. COPY caches by contents: with the
# commit's time, the cached layer would keep the time of an earlier commit.
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
# entr restarts a command when a file changes. The stage is for development only, so the package version is not pinned.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends entr && rm -rf /var/lib/apt/lists/*
# The sources are mounted read-only; build output goes to a volume.
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
# Inside a container the service has to listen on all addresses; the default, 127.0.0.1, would be unreachable.
ENV APP__HTTP__ADDRESS=0.0.0.0
# Numeric, so that Kubernetes can verify that the user is not root.
USER 65532:65532
WORKDIR /
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --start-interval=1s --retries=3 CMD ["/app", "healthcheck"]
ENTRYPOINT ["/app"]
CMD ["serve"]
