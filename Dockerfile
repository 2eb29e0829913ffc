# One image for the migration and for workers. Put your own code beside it: FROM this image, COPY it to /app,
# and run `worker --app module:app`.
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY alembic ./alembic
COPY pgqueue ./pgqueue
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[speed]" \
    && rm -r /wheels \
    && useradd --uid 10001 --create-home pgqueue
USER pgqueue
WORKDIR /app
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["pgq"]
CMD ["worker"]
