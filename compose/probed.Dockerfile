# An image that has neither a shell nor any other program, plus what a health check needs: a wget,
# which is BusyBox under that name.
ARG IMAGE

FROM busybox:1.37.0-musl AS busybox

# hadolint ignore=DL3006  # docker-compose.yml says which, with its version
FROM ${IMAGE}
COPY --from=busybox /bin/busybox /bin/wget
USER 10001:10001
