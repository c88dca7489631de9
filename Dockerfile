# scoresmooth on a GPU machine: docker compose run --rm worker make repro
# The wheels of PyTorch and FAISS bring their own CUDA libraries; the base image brings what the driver needs.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 scoresmooth \
    && install -d -o scoresmooth -g scoresmooth /project
USER 10001
WORKDIR /project

# The environment first: it changes more rarely than the code. `make` finds it by its time stamps.
COPY --chown=10001 pyproject.toml constraints.txt README.md Makefile ./
RUN mkdir stages pipeline && touch stages/__init__.py pipeline/__init__.py && make .venv/.installed

COPY --chown=10001 . .
RUN mkdir -p .scoresmooth .dvc/cache
ENV PATH=/project/.venv/bin:$PATH
CMD ["make", "repro"]
