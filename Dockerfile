FROM python:3.11-slim

# The CPU build of torch. For a CUDA host: docker build --build-arg PIP_EXTRA= .
ARG PIP_EXTRA="--extra-index-url https://download.pytorch.org/whl/cpu"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /srv/allrounder
COPY constraints.txt ./
RUN pip install -c constraints.txt ${PIP_EXTRA} torch transformers
COPY . ./
RUN pip install -c constraints.txt ${PIP_EXTRA} -e '.[embedded]'

RUN useradd --create-home --uid 10001 allrounder && install -d -o allrounder /data
USER allrounder
ENV ALLROUNDER_HOST=0.0.0.0 ALLROUNDER_DATA_DIR=/data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=3)"
CMD ["allrounder", "serve"]
