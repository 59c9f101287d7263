# The images that the stages start from. A digest names one image permanently; docs/releasing.md renews them.
ARG BUILD_IMAGE=docker.io/library/python:3.11-bookworm@sha256:b99029c95d3d37fb1e4e76d287f7984373dca77c665885986e31b2c95260c13c
ARG RUNTIME_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# The first stage builds with pip and a C compiler. The second one has only Python and the virtualenv.
FROM ${BUILD_IMAGE} AS build
WORKDIR /source
RUN python -m venv /opt/tornado-gateway
# Only the locked files are installed, in a layer of its own, because they change less often than the gateway. The build
# tools stay outside of the virtualenv.
COPY conf/requirements.lock conf/build.lock ./
RUN /opt/tornado-gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && /opt/tornado-gateway/bin/pip install --no-cache-dir --require-hashes --target /tools -r build.lock
COPY setup.py pyproject.toml README.md ./
COPY docs/operating.md docs/
COPY tornado_gateway tornado_gateway
RUN TORNADO_GATEWAY_COMPILE=1 PYTHONPATH=/tools \
    /opt/tornado-gateway/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/tornado-gateway/bin/python -m compileall -q /opt/tornado-gateway

FROM ${RUNTIME_IMAGE}
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin gateway \
    && install -d -m 700 -o gateway -g gateway /data
COPY --from=build /opt/tornado-gateway /opt/tornado-gateway
ENV PATH=/opt/tornado-gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_DIR=/data
# A number, so that Kubernetes can verify that it is not root.
USER 10001
# Undelivered events; mount a persistent volume.
VOLUME /data
EXPOSE 8000
# The exec form has no shell, so the gateway itself gets SIGTERM. As PID 1 it also reaps its workers.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["tornado-gateway", "health"]
ENTRYPOINT ["tornado-gateway"]
CMD ["serve"]
