# Dockerfile - an image that holds ./dlm and nothing else.
#
#     docker build -t dlm .
#     docker run --rm dlm run -p "What is 2+2?"
#     docker run -p 8080:8080 -e DLM_API_KEY=... -v "$PWD/tls:/tls:ro" dlm
#
# The second serves over TLS with /tls/tls.crt and /tls/tls.key, which user 65532 must be able to read. A
# model is mounted too, and named by -e DLM_MODEL=/models/FILE. tests/e2e/image.py runs what the last stage says.

FROM alpine:3.22 AS build
WORKDIR /build
COPY build.sh dlm.c dlm_kernels.h ./
COPY src src
COPY tools/mbedtls.sh tools/
COPY tests/run.sh tests/
COPY tests/golden/tiny-dlm.gguf tests/golden/
RUN ./build.sh release

FROM scratch
COPY --from=build /build/dlm /dlm
ENV DLM_HOST=0.0.0.0 DLM_PORT=8080
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=6s --start-period=60s --retries=3 \
    CMD ["/dlm", "health"]
ENTRYPOINT ["/dlm"]
CMD ["serve", "--tls-cert", "/tls/tls.crt", "--tls-key", "/tls/tls.key"]
