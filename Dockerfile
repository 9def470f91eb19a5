# syntax=docker/dockerfile:1
# The server in two images, from the wheels that `make dist` builds (docs/installation.md):
#
#   docker build --target cpu -t rest_fast:cpu .
#   docker build --target cuda -t rest_fast:cuda .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS sources
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /src
COPY . .

FROM sources AS wheel-cpu
ARG PYTHON
RUN python tools/dist.py build --no-cuda --python "${PYTHON}" --out /wheels

FROM sources AS wheel-cuda
ARG PYTHON
COPY --from=nvidia/cuda:13.0.1-devel-ubuntu22.04 /usr/local/cuda-13.0 /usr/local/cuda-13.0
ENV PATH=/usr/local/cuda-13.0/bin:${PATH}
RUN python tools/dist.py build --python "${PYTHON}" --out /wheels

FROM python:${PYTHON}-slim-bookworm AS server
RUN useradd --create-home --uid 10001 rest_fast
ENV PYTHONUNBUFFERED=1
EXPOSE 8766
# It listens once the model is loaded and its first chunks are made; 503 while it is ending.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8766/healthz', timeout=4)"]
# An address that others reach needs a token: docker run -e REST_FAST_TOKEN=...
ENTRYPOINT ["rest-fast", "serve", "--host", "0.0.0.0"]

FROM server AS cpu
RUN --mount=type=bind,from=sources,source=/src/constraints-cpu.txt,target=/constraints.txt \
    --mount=type=bind,from=wheel-cpu,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
    && pip install --no-cache-dir --constraint /constraints.txt "$(echo /wheels/*manylinux*.whl)[server,face]"
USER 10001
WORKDIR /home/rest_fast

FROM server AS cuda
# Triton compiles a launcher for each of its kernels. The driver comes from the host, the rest of CUDA with PyTorch.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=sources,source=/src/constraints-cpu.txt,target=/constraints.txt \
    --mount=type=bind,from=wheel-cuda,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /constraints.txt "$(echo /wheels/*manylinux*.whl)[server,face]"
USER 10001
WORKDIR /home/rest_fast
