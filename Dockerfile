# eventbus: edge nodes, workers and the command line, by the same image.
#
#   docker build -t eventbus .
#   docker run --init eventbus queue work --queue default --app shop.listeners
#
# Built twice, it is the same only on the same base; name that by its digest:
#
#   docker build --build-arg PYTHON=python:3.13-slim-trixie@sha256:… -t eventbus .
#
# With your application: FROM eventbus, USER root, RUN pip install --no-cache-dir …, USER 10001.
ARG PYTHON=python:3.13-slim-trixie

FROM ${PYTHON} AS build
ENV PIP_PYTHON=/opt/eventbus/bin/python
WORKDIR /src
COPY . .
# What is downloaded is kept for the next build; what is installed is all that goes into the image.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/eventbus \
    && pip install "/src[contracts,otel,redis]"

FROM ${PYTHON}
# What is compiled already needs no place to be written to: the root file system may be read-only.
# PIP_PYTHON: pip installs beside eventbus.
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
# Of an edge, with TLS or without; whoever runs something else says --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-m", "eventbus_edge.health"]
# The process itself gets SIGTERM, and drains; it waits for its own children. A process 1 never gets a
# signal that it does not handle yet: --init (compose: init) is for the half second of its start.
ENTRYPOINT ["eventbus"]
CMD ["edge", "run"]
