# What it takes to run stages, and to serve their models as they are: images as files, base64 or arrays. `make image`
# builds it. Models that stand alone (hpt promote --to, hpt export --format mlflow) need no image of this project.
#
#   docker run --rm -e MLFLOW_TRACKING_URI=https://mlflow.example hpt_mlflow hpt lineage models:/hpt@champion
#   docker run --rm -e MLFLOW_TRACKING_URI=https://mlflow.example -p 5001:5001 hpt_mlflow \
#       mlflow models serve -m models:/hpt-classifier@champion --env-manager local --host 0.0.0.0 --port 5001
FROM python:3.11-slim

# For pip, such as the --extra-index-url of torch without CUDA, which makes the image several GB smaller.
ARG PIP_OPTIONS=""
COPY dist/hpt_mlflow-*.whl /tmp/
RUN pip install --no-cache-dir ${PIP_OPTIONS} "$(ls /tmp/hpt_mlflow-*.whl)[system]" && \
    rm /tmp/hpt_mlflow-*.whl

# Not as root: what a server is sent is decoded by libraries of many formats.
RUN useradd --create-home hpt
USER hpt
WORKDIR /home/hpt
CMD ["hpt", "--help"]
