#!/bin/sh
# Installs what the test cluster is made of (60 MB to download), where this user may. No service is started
# or left enabled: the cluster starts its own daemons. Exit code 3: this user or system cannot install it (the
# tests on Slurm then skip); any other but 0: it should have worked and did not.
set -eu
for program in slurmctld slurmd slurmdbd mariadbd munged sbatch; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null 2>&1 || lacking=yes
done
[ "${lacking-no}" = yes ] || exit 0
packages="slurm-wlm slurmdbd mariadb-server munge"
if [ "$(id -u)" != 0 ]; then
    echo "The Slurm test cluster needs Debian's $packages; as root: sh tests/support/cluster/install.sh" >&2
    exit 3
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "The Slurm test cluster needs Slurm, slurmdbd, MariaDB and munge; this system has no apt-get" >&2
    exit 3
fi
export DEBIAN_FRONTEND=noninteractive
# Debian's packages start their services unless this says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
enabled() {
    for unit in munge mariadb slurmdbd slurmctld slurmd; do
        ! systemctl is-enabled --quiet "$unit" 2>/dev/null || echo "$unit"
    done
}
before=$(enabled)
apt-get -qq update
# shellcheck disable=SC2086  # a list
apt-get -qq install -y --no-install-recommends $packages >/dev/null
# Not started, but enabled, they would start with the machine. What was enabled before is somebody's own.
for unit in $(enabled); do
    case " $(echo $before) " in *" $unit "*) ;; *) systemctl --quiet disable "$unit" ;; esac
done
