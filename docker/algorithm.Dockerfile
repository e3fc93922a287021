# One algorithm as a grand-challenge container. `autopet build METHOD` makes the build context:
#   requirements.txt constraints.txt pyproject.toml  the method's dependencies and the distribution
#   autopet/ baselines|algorithms/<method>/          the code
#   wheelhouse/ ca/ model/                           empty, or wheels / a CA bundle / weights to bake in
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE} AS build
COPY docker/install.sh requirements.txt constraints.txt /build/
COPY wheelhouse /build/wheelhouse
COPY ca /build/ca
RUN sh /build/install.sh dependencies
COPY pyproject.toml /build/
COPY code /build/
RUN sh /build/install.sh code

FROM ${BASE_IMAGE}
ARG PACKAGE
ARG API=exec
ARG VERSION=unknown
LABEL org.grand-challenge.api-method="${API}" \
      org.opencontainers.image.title="${PACKAGE}" \
      org.opencontainers.image.version="${VERSION}"
COPY docker/user.sh /tmp/user.sh
RUN sh /tmp/user.sh && rm /tmp/user.sh
COPY --from=build /opt/venv /opt/venv
COPY model /opt/algorithm/model
ENV PATH="/opt/venv/bin:${PATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib \
    AUTOPET_METHOD="${PACKAGE}" AUTOPET_API="${API}"
USER user
WORKDIR /tmp
EXPOSE 4743
ENTRYPOINT ["python3", "-m", "autopet.container"]
