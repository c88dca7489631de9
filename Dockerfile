# The environment of scoresmooth on a GPU machine; the project itself is mounted at /project:
# docker compose run --rm worker make repro
# The wheels of PyTorch and FAISS bring their own CUDA libraries; the base image brings what the driver needs.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The home is anyone's: compose runs the containers as the user of the mounted files, whom the image need not know.
# DVC asks for the user's name, and finds it in USER where /etc/passwd has none.
RUN useradd --uid 10001 --no-create-home --home-dir /home/scoresmooth scoresmooth \
    && install -d -m 0777 /home/scoresmooth \
    && install -d -o scoresmooth /project /opt/venv
USER 10001
WORKDIR /project
# PWD is what `prefect deploy` (prefect.yaml) notes as the folder of its runs, and without a shell nobody sets it.
ENV HOME=/home/scoresmooth USER=scoresmooth PWD=/project VENV=/opt/venv PATH=/opt/venv/bin:$PATH

# `make` compares the mounted project's pins with those that were installed: build again when they have changed.
COPY --chown=10001 pyproject.toml constraints.txt README.md LICENSE Makefile ./
RUN for name in scoresmooth stages pipeline; do mkdir $name && touch $name/__init__.py; done && make /opt/venv/.installed-test
CMD ["make", "repro"]
