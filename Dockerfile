# syntax=docker/dockerfile:1
# docker build -t essl_fast . && docker run --rm --gpus all --ipc=host -v "$PWD/data:/data" essl_fast train --help
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/essl_fast
ENV PATH=/opt/essl_fast/bin:$PATH
WORKDIR /source
COPY . .
# ESSL_CUDA=1: an image without the CUDA part is an error. nvcc comes from PyPI.
RUN --mount=type=cache,target=/root/.cache/pip ESSL_CUDA=1 pip install -c constraints.txt '.[tensorboard,h5]'

FROM nvidia/cuda:13.0.2-base-ubuntu24.04
# torch.compile and Triton need a C compiler and Python's headers when they run.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 essl
COPY --from=build /opt/essl_fast /opt/essl_fast
ENV PATH=/opt/essl_fast/bin:$PATH \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/essl
HEALTHCHECK --interval=5m --timeout=2m --start-period=30s CMD ["python", "-m", "essl_fast.doctor", "--json"]
ENTRYPOINT ["/bin/sh", "-c", "command=$1; shift; exec python -m \"essl_fast.$command\" \"$@\"", "essl_fast"]
CMD ["doctor"]
