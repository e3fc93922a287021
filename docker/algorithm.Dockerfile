# One algorithm as a grand-challenge container. `autopet build METHOD` makes the build context:
#   requirements.txt constraints.txt pyproject.toml  the method's dependencies and the distribution
#   autopet/ baselines|algorithms/<method>/          the code
#   wheelhouse/ ca/ model/                           empty, or wheels / a CA bundle / weights to bake in
# What differs between methods comes last: images with the same requirements share the layers that hold them.
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE} AS dependencies
COPY docker/install.sh constraints.txt /build/
COPY ca /build/ca
COPY wheelhouse /build/wheelhouse
COPY requirements.txt /build/
RUN sh /build/install.sh dependencies

FROM dependencies AS build
COPY pyproject.toml /build/
COPY code /build/
RUN sh /build/install.sh code

FROM ${BASE_IMAGE}
COPY docker/user.sh /tmp/user.sh
RUN sh /tmp/user.sh && rm /tmp/user.sh
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=build /opt/code /opt/code
COPY model /opt/algorithm/model
ARG PACKAGE
ARG API=exec
ARG VERSION=unknown
LABEL org.grand-challenge.api-method="${API}" \
      org.opencontainers.image.title="${PACKAGE}" \
      org.opencontainers.image.version="${VERSION}"
ENV PATH="/opt/venv/bin:/opt/code/bin:${PATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib AUTOPET_METHOD="${PACKAGE}" AUTOPET_API="${API}"
USER user
WORKDIR /tmp
EXPOSE 4743
ENTRYPOINT ["python3", "-m", "autopet.container"]
