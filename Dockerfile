# astrozoo with all extras, for NVIDIA GPUs (and CPUs, slower).
#
#   docker build -t astrozoo .
#   docker run --rm --gpus all -v "$PWD:/home/astrozoo/work" astrozoo train cube_unet_small --data climate.nc
#
# The PyTorch wheel brings its own CUDA libraries, cuDNN and NCCL; the base image gives the driver's counterpart.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# gcc and the Python headers: torch.compile builds its kernels' launchers with them.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/astrozoo \
    PATH=/opt/astrozoo/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLBACKEND=agg

RUN python3 -m venv "$VIRTUAL_ENV" && pip install --no-cache-dir "uv>=0.8,<1"

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY astrozoo ./astrozoo
# `all` leaves out what only a CUDA GPU can use; this image is for one.
RUN uv pip install --no-cache ".[all,kernels]"

RUN useradd --create-home --shell /bin/bash --uid 10001 astrozoo
USER astrozoo
# Made by the user who writes into it; WORKDIR alone would leave it to root.
RUN mkdir /home/astrozoo/work
WORKDIR /home/astrozoo/work

# Imports, devices, a model forward and backward, a checkpoint round trip: the whole chain, not only a live process.
HEALTHCHECK --interval=30m --timeout=2m --start-period=2m --retries=2 CMD ["astrozoo", "doctor"]

ENTRYPOINT ["astrozoo"]
CMD ["--help"]
