# eventbus: one image for edge nodes, workers and the command line.
#
#   docker build -t eventbus .
#   docker run --init eventbus queue work --queue default --app shop.listeners
#
# For reproducible builds, pin the base image by its digest:
#
#   docker build --build-arg PYTHON=python:3.13-slim-trixie@sha256:… -t eventbus .
#
# To add your application: FROM eventbus, USER root, RUN pip install --no-cache-dir …, USER 10001.
ARG PYTHON=python:3.13-slim-trixie

FROM ${PYTHON} AS build
WORKDIR /src
COPY . .
# The lock files have the hash of every download, the build tool's too (scripts/audit lock).
# Downloads are cached for the next build. Only the installed packages go into the image.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --requirement requirements-build.lock \
    && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/eventbus \
    && export PIP_PYTHON=/opt/eventbus/bin/python \
    && pip install --require-hashes --requirement requirements.lock \
    && pip install --no-index --no-deps /wheels/*.whl

FROM ${PYTHON}
# Modules are compiled in the build, so the root file system can be read-only.
# PIP_PYTHON makes pip install into the environment of eventbus.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_PYTHON=/opt/eventbus/bin/python \
    PATH=/opt/eventbus/bin:$PATH
RUN groupadd --gid 10001 eventbus \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/eventbus --no-create-home --no-log-init \
        --shell /usr/sbin/nologin eventbus \
    && install -d -o eventbus -g eventbus /var/lib/eventbus
COPY --from=build /opt/eventbus /opt/eventbus
USER 10001
WORKDIR /var/lib/eventbus
EXPOSE 8080
# The health check is for edges, with and without TLS. Use --no-healthcheck for other commands.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-m", "eventbus_edge.health"]
# The process gets SIGTERM itself, drains, and waits for its children. Process 1 ignores signals that
# it has no handler for: --init (compose: init) covers the half second until the handler is set.
ENTRYPOINT ["eventbus"]
CMD ["edge", "run"]
