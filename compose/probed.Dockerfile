# An image that has neither a shell nor any other program, plus what a health check needs: a wget,
# which is BusyBox under that name. And a directory for data that its user may write to, as a new
# volume takes over the owner of what it is mounted on.
ARG IMAGE

FROM busybox:1.37.0-musl AS busybox
RUN mkdir /empty

# hadolint ignore=DL3006  # docker-compose.yml says which, with its version
FROM ${IMAGE}
COPY --from=busybox /bin/busybox /bin/wget
COPY --from=busybox --chown=10001:10001 /empty /var/tempo
USER 10001:10001
