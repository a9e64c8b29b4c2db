# Targets: `cpu` (the default) and `cuda`. docker build --target cuda .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt ./

FROM builder AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY allrounder allrounder
COPY app app
COPY router_weights router_weights
RUN pip wheel --no-deps --wheel-dir /dist .

# torch first: its layer stays when only our own code changes.
FROM builder AS venv-cpu
ARG PIP_EXTRA="--extra-index-url https://download.pytorch.org/whl/cpu"
RUN pip install --constraint constraints.txt ${PIP_EXTRA} torch transformers
COPY --from=wheel /dist /dist
RUN pip install --constraint constraints.txt ${PIP_EXTRA} "$(echo /dist/*.whl)[embedded,otel]"

FROM builder AS venv-cuda
ARG PIP_EXTRA=""
RUN pip install --constraint constraints.txt ${PIP_EXTRA} torch transformers
COPY --from=wheel /dist /dist
RUN pip install --constraint constraints.txt ${PIP_EXTRA} "$(echo /dist/*.whl)[embedded,otel]"

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="Allrounder" \
      org.opencontainers.image.description="Serves frozen vision-language models at a compute budget chosen per request" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 allrounder \
    && useradd --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin \
        --uid 10001 --gid 10001 allrounder \
    && install -d -o 10001 -g 10001 -m 0750 /data
# The root file system may be read-only: all that is written goes to /data or /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/data/hub \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ALLROUNDER_HOST=0.0.0.0 \
    ALLROUNDER_DATA_DIR=/data
WORKDIR /data
VOLUME /data
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ.get('ALLROUNDER_PORT', 8000)}/readyz\", timeout=4)"]
CMD ["allrounder", "serve"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=venv-cuda /opt/venv /opt/venv

FROM runtime AS cpu
COPY --from=venv-cpu /opt/venv /opt/venv
