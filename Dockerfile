# One image for the API and for workers; see docs/how-to/docker.md.
#
#   docker build -t penstock .
#   docker build -t penstock --build-arg PYTHON_IMAGE=registry.example/python:3.11-slim .
#
# PYTHON_IMAGE is any glibc image with Python 3.11 or newer and pip as `python3`. It is used twice, so that the libraries are
# installed by the Python that runs them.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# The libraries come first: they change less often than the project, and their layer is then built once. The build backend goes
# into the Python of this stage and stays here; pip fills the empty environment from outside, so neither is in the image twice.
COPY requirements.txt requirements-build.txt ./
RUN python3 -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r requirements-build.txt \
 && python3 -m venv --without-pip /opt/penstock \
 && python3 -m pip --python /opt/penstock/bin/python install --quiet --no-deps --require-hashes --only-binary :all: -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python3 -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir wheels . \
 && python3 -m pip --python /opt/penstock/bin/python install --quiet --no-deps --no-index wheels/*.whl

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Penstock" \
      org.opencontainers.image.description="An HTTP job server on Redis or Valkey" \
      org.opencontainers.image.licenses="Apache-2.0"
# No tool for adding users is the same in every base image; a line is.
RUN echo 'penstock:x:10001:10001::/app:/usr/sbin/nologin' >>/etc/passwd && echo 'penstock:x:10001:' >>/etc/group
COPY --from=build /opt/penstock /opt/penstock
# Bytecode is in the image already, and the root file system may be read-only. Inside a container loopback is of no use to
# anyone; on other addresses the API refuses to start without keys.
ENV PATH=/opt/penstock/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PENSTOCK_HOST=0.0.0.0
# The import path of workers: task modules go here.
WORKDIR /app
# By number, so that a cluster can see that it is not root.
USER 10001:10001
EXPOSE 5000
STOPSIGNAL SIGTERM
# For the API, which is what runs by default. A worker is asked with `penstock health --worker`.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["penstock", "health"]
ENTRYPOINT ["penstock"]
CMD ["api"]
