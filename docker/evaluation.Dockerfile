# The evaluation container: predictions in /input, ground truth in /opt/ml/input/data/ground_truth (masks, and cases.csv with
# tracer and centre), PET in SUV in /opt/ml/input/data/images; metrics.json, lesions.csv and previews/ in /output.
# `autopet build evaluation` makes the build context, as for an algorithm.
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
ARG VERSION=unknown
LABEL org.opencontainers.image.title="evaluation" org.opencontainers.image.version="${VERSION}"
ENV PATH="/opt/venv/bin:/opt/code/bin:${PATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER user
WORKDIR /tmp
ENTRYPOINT ["python3", "-m", "evaluation"]
