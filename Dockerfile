# dipy_ldm as a BIDS App: docker build -t dipy_ldm .   (--build-arg EXTRA=cuda for GPUs)
FROM python:3.12-slim

# Empty for processors; cuda adds CUDA's libraries for NVIDIA GPUs.
ARG EXTRA=""

WORKDIR /opt/dipy_ldm
COPY pyproject.toml README.md LICENSE ./
COPY dipy_ldm dipy_ldm
RUN pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}"

# Any user may run it, whose home need not exist.
ENV XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1
WORKDIR /data
ENTRYPOINT ["dipy_ldm_bids"]
CMD ["--help"]
