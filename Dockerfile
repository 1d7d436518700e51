# syntax=docker/dockerfile:1
#
#   docker build --target service  -t prismrec .            serves; no torch, no build tools
#   docker build --target training -t prismrec-training .   trains, exports, imports data

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
RUN groupadd --gid 10001 prismrec && useradd --uid 10001 --gid prismrec --create-home prismrec

FROM base AS build-service
WORKDIR /src
RUN python -m venv /opt/venv
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ".[otel]" && python -m compileall -q /opt/venv

FROM build-service AS build-training
# torch first and alone: its pinned version decides the build, before anything else can ask for another one.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "$(grep '^torch==' constraints.txt)" && pip install --constraint constraints.txt ".[otel,train]"

FROM base AS training
COPY --from=build-training /opt/venv /opt/venv
RUN install --directory --owner=prismrec --group=prismrec /workspace
USER prismrec
WORKDIR /workspace
ENTRYPOINT ["prismrec-train"]
CMD ["--help"]

FROM base AS service
COPY --from=build-service /opt/venv /opt/venv
# /store holds bundles and snapshots and may be mounted read-only; /data holds the embedded event store.
RUN install --directory --owner=prismrec --group=prismrec /store /data
USER prismrec
WORKDIR /data
VOLUME ["/store", "/data"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["prismrec-serve"]
CMD ["--store", "/store", "--host", "0.0.0.0", "--port", "8000", "--history", "sqlite:/data/events.db"]
