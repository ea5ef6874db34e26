# eventbus: edge nodes, workers and the command line, by the same image.
#
#   docker build -t eventbus .
#   docker run eventbus queue work --queue default --app shop.listeners
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --wheel-dir /wheels ".[contracts,otel,redis]"

FROM python:3.13-slim
# What is not there needs no place to be written to: the root file system may be read-only.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PATH=/opt/eventbus/bin:$PATH
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m venv /opt/eventbus \
    && /opt/eventbus/bin/pip install --no-cache-dir --no-index --find-links /wheels "eventbus[contracts,otel,redis]" \
    && /opt/eventbus/bin/python -m compileall -q /opt/eventbus/lib
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin eventbus \
    && install -d -o eventbus -g eventbus /var/lib/eventbus
USER 10001
WORKDIR /var/lib/eventbus
EXPOSE 8080
# Of an edge, with TLS or without; whoever runs something else says --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-m", "edge.health"]
# The process itself gets SIGTERM, and drains.
ENTRYPOINT ["eventbus"]
CMD ["edge", "run"]
