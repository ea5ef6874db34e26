#!/bin/sh
# Runs a command as an engine runs a container: as process 1, as a user without rights, in a root file
# system that has what is named here alone and is read-only. Of the network it is the machine's own.
#
#   unshare --mount --pid --fork --kill-child sh container.sh ROOT UID WORKDIR MOUNTS NAME=VALUE... COMMAND
#
# ROOT is an empty folder. MOUNTS is a file with a line for each mount: "ro SOURCE TARGET" or
# "rw SOURCE TARGET", in the order in which they are made.
set -eu
root=$1 uid=$2 workdir=$3 mounts=$4
shift 4

mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$root"

show() { # how, source, target
    if [ -L "$2" ]; then # /bin is usr/bin
        ln -s "$(readlink "$2")" "$root$3"
        return
    fi
    if [ -d "$2" ]; then mkdir -p "$root$3"; else
        mkdir -p "$(dirname "$root$3")"
        : >"$root$3"
    fi
    mount --bind "$2" "$root$3"
    mount -o "remount,bind,$1" "$root$3"
}

for folder in /usr /bin /sbin /lib /lib64 /etc; do
    if [ -e "$folder" ]; then show ro "$folder" "$folder"; fi
done
for device in null zero full random urandom; do show rw /dev/$device /dev/$device; done
mkdir "$root/proc" && mount -t proc proc "$root/proc"
while read -r how source target; do show "$how" "$source" "$target"; done <"$mounts"
mount -o remount,ro "$root"

exec chroot "$root" setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all \
    --bounding-set=-all --no-new-privs env -i --chdir="$workdir" "$@"
