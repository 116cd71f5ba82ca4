# syntax=docker/dockerfile:1
# A server with an NVIDIA GPU: edgekit on NVIDIA's image of CUDA 13, cuDNN and TensorRT, for x86-64 and arm64 (Grace).
#   docker build -t edgekit .
#   docker run --rm --gpus all -p 8000:8000 -p 8001:8001 -v "$PWD/models:/models:ro" edgekit
# For another TensorRT (an engine runs on the release that built it): --build-arg BASE=nvcr.io/nvidia/tensorrt:25.10-py3
ARG BASE=nvcr.io/nvidia/tensorrt:25.08-py3

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgekit edgekit
COPY plugins_trt plugins_trt
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM ${BASE} AS environment
ARG EXTRAS=gpu,s3,serve,telemetry
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist /dist
COPY constraints.txt /dist/
# --system-site-packages: TensorRT's Python module is part of the base image, which brings constraints of its own
RUN unset PIP_CONSTRAINT \
    && python3 -m venv --system-site-packages /opt/edgekit \
    && wheel=$(ls /dist/edgekit-*.whl) \
    && /opt/edgekit/bin/python -m pip install --no-cache-dir -c /dist/constraints.txt "${wheel}[${EXTRAS}]" \
    && /opt/edgekit/bin/python -m pip uninstall --yes pip setuptools

FROM ${BASE}
RUN useradd --uid 10001 --create-home --home-dir /var/lib/edgekit edgekit \
    && mkdir /models
COPY --from=environment /opt/edgekit /opt/edgekit
ENV PATH=/opt/edgekit/bin:$PATH \
    HOME=/var/lib/edgekit
WORKDIR /var/lib/edgekit
USER 10001
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/live', timeout=2)"]
ENTRYPOINT ["edgekit"]
CMD ["serve", "/models", "--host", "0.0.0.0", "--port", "8000", "--grpc-port", "8001"]
