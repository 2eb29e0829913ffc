# One image for the migration, for workers and for the HTTP API. Put your own code beside it: FROM this image, COPY it to /app,
# and run `worker --app module:app`.
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY alembic ./alembic
COPY pgqueue ./pgqueue
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
# The wheel is mounted, not copied: a file that a later layer removes is still carried by the one before.
RUN --mount=from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[server,speed]" \
    && useradd --uid 10001 --create-home pgqueue
# By number: Kubernetes can then see that it is not root.
USER 10001
WORKDIR /app
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["pgq"]
CMD ["worker"]
