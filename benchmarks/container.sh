#!/bin/sh
# Builds examples/Containerfile and runs it as nobody, as process 1, on a file system that nothing can write to.
#
#   sh benchmarks/container.sh INDEX
#
# For root on Debian with buildah and debootstrap. Where no registry can be reached, a Debian root made here stands for
# the base image; what is in /etc/pip.conf and /etc/ssl/certs then holds within too.
set -eu
index=$(realpath "$1")
base=docker.io/library/python:3.12-slim token=a-token-for-the-container port=${PORT:-8135}
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
work=$(mktemp -d)
if ! buildah inspect --type image $base > "$work/inspected" 2>&1 && ! buildah pull -q $base 2> "$work/pulled"; then
  debootstrap --variant=minbase --include=python3,python3-pip,ca-certificates bookworm "$work/root" > "$work/bootstrap"
  rm -f "$work"/root/usr/lib/python3*/EXTERNALLY-MANAGED
  ln -sf python3 "$work/root/usr/bin/python"
  made=$(buildah from scratch)
  buildah copy -q "$made" "$work/root" /
  buildah commit -q "$made" $base
  buildah rm "$made"
fi
cd "$(dirname "$0")/.."
set -- -v /etc/ssl/certs:/etc/ssl/certs:ro
if [ -e /etc/pip.conf ]; then set -- "$@" -v /etc/pip.conf:/etc/pip.conf:ro; fi
buildah bud -q --pull-never --network host "$@" -f examples/Containerfile -t indistill-serve .
made=$(buildah from --pull-never localhost/indistill-serve)
root=$(buildah mount "$made")
mkdir -p "$root/index" "$root/proc" "$root/dev"
entry="exec indistill serve /index --host 0.0.0.0 --port $port"
code=0
unshare --mount --pid --fork sh -c "
  mount --bind $root $root && mount --bind $index $root/index && mount -t proc proc $root/proc
  mount --bind /dev $root/dev && mount -o remount,bind,ro $root/index && mount -o remount,bind,ro $root
  exec chroot --userspec=65534:65534 $root env -i PATH=/usr/local/bin:/usr/bin:/bin INDISTILL_TOKEN=$token sh -c '
    touch /tmp/written /index/written 2> /dev/null && echo the file system is writable
    python -c \"import importlib.util as u; print(\\\"torch:\\\", u.find_spec(\\\"torch\\\")); import os; print(\\\"user:\\\", os.getuid())\"
    $entry'" > "$work/out" 2>&1 &
runner=$!
until curl -sf "http://127.0.0.1:$port/readyz" > "$work/ready"; do sleep 1; kill -0 $runner; done
head -c 3000000 /dev/zero > "$work/zeros"
curl -s -o "$work/hits" -w "a search: %{http_code}\n" -H "Authorization: Bearer $token" --json '{"id": 1}' "http://127.0.0.1:$port/search"
curl -s -o "$work/hits" -w "an upload of 3 MB that is no image: %{http_code}\n" -H "Authorization: Bearer $token" -F "image=@$work/zeros" "http://127.0.0.1:$port/search"
kill -TERM "$(pgrep -P $runner)"
wait $runner || code=$?
cat "$work/out"
echo "ended with $code"
buildah umount "$made" > "$work/umounted"
buildah rm "$made" > "$work/removed"
rm -r "$work"
