#!/bin/sh
# setup.sh installs what building, testing and the lab need, by Debian package name;
# `setup.sh bench` also what the benchmarks compare with, `setup.sh soak` what the
# newer engine of Docker is built with.
# It runs as root or through sudo on Debian 12 or 13 and does nothing where all is present.
# The mirror is the one the machine already uses: no host is named here.
set -eu

packages="make git ca-certificates curl xz-utils zstd squashfs-tools kmod cpio
  qemu-system-x86 ovmf ipxe-qemu swtpm iproute2 nftables dnsmasq udhcpc nginx-light
  qemu-system-arm qemu-utils qemu-efi-aarch64 dosfstools mtools fdisk gdisk e2fsprogs device-tree-compiler
  tpm2-tools swtpm-tools softhsm2 gcc libc6-dev systemd cryptsetup-bin debian-archive-keyring docker.io fsverity"
case "${1:-}" in
"") ;;
bench) packages="$packages mmdebstrap skopeo" ;;
soak) packages="$packages pkg-config libseccomp-dev" ;;
*) echo "setup: only the arguments bench and soak are known" >&2; exit 2 ;;
esac

. /etc/os-release
case "${VERSION_CODENAME:-}" in
bookworm | trixie) ;;
*) echo "setup: Debian 12 (bookworm) or 13 (trixie) is needed; this is ${PRETTY_NAME:-unknown}" >&2; exit 1 ;;
esac

# Debian 12 has Docker's client in docker.io.
[ "$VERSION_CODENAME" = bookworm ] || packages="$packages docker-cli"

as_root=""
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "setup: run as root, or install sudo" >&2; exit 1; }
  as_root="sudo"
fi

missing=""
for p in $packages; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
# QEMU 7.2 of bookworm corrupts x86 guests with more than one processor, and the arm64 half has to match.
old_qemu=""
if [ "$VERSION_CODENAME" = bookworm ]; then
  for p in qemu-system-x86 qemu-system-arm; do
    v=$(dpkg-query -W -f '${Version}' "$p" 2>/dev/null || true)
    if [ -z "$v" ] || dpkg --compare-versions "$v" lt 1:10; then old_qemu=1; fi
  done
fi
command -v go >/dev/null || [ -x /usr/local/go/bin/go ] || missing="$missing golang-go"

if [ -z "$missing" ] && [ -z "$old_qemu" ]; then exit 0; fi
echo "setup: installing$missing${old_qemu:+ and QEMU 10 from backports}"

# One lock for side-by-side runs, and no question from any package.
export DEBIAN_FRONTEND=noninteractive
apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0"
if [ "$VERSION_CODENAME" = bookworm ]; then
  list=/etc/apt/sources.list.d/portcullis-backports.sources
  if [ ! -e "$list" ]; then
    $apt update
    uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk '$2=="bookworm"{print $1; exit}')
    [ -n "$uri" ] || { echo "setup: no bookworm mirror in the apt configuration; add one" >&2; exit 1; }
    printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' "$uri" |
      $as_root tee "$list" >/dev/null
  fi
fi
$apt update
if [ -n "$missing" ]; then
  # Services that come with a package must not start on the build machine.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee /usr/sbin/policy-rc.d >/dev/null
    $as_root chmod 755 /usr/sbin/policy-rc.d
    trap '$as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  target=""
  case " $missing " in *" golang-go "*) [ "$VERSION_CODENAME" = bookworm ] && target="golang-go/bookworm-backports golang-src/bookworm-backports" ;; esac
  $apt install -y --no-install-recommends $missing $target
fi
if [ -n "$old_qemu" ]; then
  $apt install -y --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-system-arm qemu-system-common qemu-system-data
fi
