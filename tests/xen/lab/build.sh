#!/bin/bash
# Builds a Xen host that lives wholly in an initramfs, and its guests, from Debian 12 packages only. Nothing is
# installed: packages are resolved and fetched by apt into WORKDIR/archives, unpacked there, and only the wanted
# programs, their shared libraries and a few kernel modules are kept. No maintainer script runs, no chroot, no mount.
#
#   usage: build.sh WORKDIR
#
# Results in WORKDIR:
#   xen          the hypervisor, uncompressed (QEMU's multiboot loader wants that)
#   vmlinux      Debian's kernel, unpacked: dom0's and the guests'
#   vmlinuz      the same as Debian ships it, for guests of plain QEMU
#   dom0.cpio    dom0's root file system
#   guest.gz     the guests' initramfs, in dom0 /guest/initrd.gz
#   guest.img    ext4 root disk of a guest; guest-grub.img: the same with a kernel on it, for /guest/pvgrub in dom0
#   id_ed25519   key pair for ssh into dom0 as root
#   versions.txt the package versions used
set -euo pipefail

# ---- what it is made of ------------------------------------------------------------------------------------------
XEN=4.17                        # the release in Debian 12
KERNEL_META=linux-image-amd64   # has CONFIG_XEN_DOM0; the cloud kernel has not
PACKAGES="xen-hypervisor-$XEN-amd64 xen-utils-$XEN xen-utils-common xenstore-utils libvirt-daemon
  libvirt-daemon-driver-xen libvirt-clients busybox-static openssh-server iproute2 netcat-openbsd bash lvm2 util-linux
  mount qemu-system-xen qemu-utils"   # QEMU in dom0 serves disks that are files, qcow2 among them
MODULES="xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs virtio_pci virtio_net virtio_blk crc32c_generic ext4
  xen-netback xen-blkback loop tun bridge dm-mod dm-snapshot dm-zero"
GUEST_MODULES="xen-netfront xen-blkfront ext4 crc32c_generic isofs"
# kept in dom0, each with every shared library it needs
PROGRAMS="/usr/sbin/libvirtd /usr/sbin/virtlogd /usr/sbin/virtlockd /usr/bin/virsh /usr/bin/virt-ssh-helper
  /usr/lib/libvirt/libvirt_iohelper /usr/lib/xen-$XEN/bin/xenstored /usr/lib/xen-$XEN/bin/xenconsoled
  /usr/lib/xen-$XEN/bin/xen-init-dom0 /usr/lib/xen-$XEN/bin/libxl-save-helper /usr/lib/xen-$XEN/bin/xenconsole
  /usr/lib/xen-$XEN/bin/xl /usr/bin/xenstore-ls /usr/bin/xenstore-read /usr/bin/xenstore-write /usr/bin/xenstore-list
  /usr/bin/xenstore-rm /usr/bin/xenstore-exists /usr/sbin/sshd /bin/ip /sbin/bridge /bin/bash /bin/nc.openbsd
  /sbin/lvm /sbin/dmsetup /usr/bin/flock /sbin/losetup /usr/libexec/xen-qemu-system-i386 /usr/bin/qemu-img"
LVM_COMMANDS="pvcreate pvremove pvs pvscan vgcreate vgremove vgs vgscan vgchange lvcreate lvremove lvs lvchange
  lvextend lvresize"
LIBVIRT_DRIVERS="libxl network nodedev interface secret storage"
STORAGE_BACKENDS="fs logical"   # pools of type dir and logical
# ------------------------------------------------------------------------------------------------------------------

die() { echo "build.sh: error: $*" >&2; exit 1; }
T0=$(date +%s)
say() { echo "build.sh: [$(( $(date +%s) - T0 )) s] $*"; }
[ $# -eq 1 ] || die "usage: $0 WORKDIR"
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; W=$(cd "$1" && pwd)
for t in apt-get apt-cache dpkg-deb cpio gzip xz ssh-keygen mke2fs; do
  command -v $t >/dev/null || die "$t is missing"
done
mkdir -p "$W/archives/partial"; : > "$W/empty-status"

apt_get() {   # as if nothing were installed: gives the whole closure
  apt-get -q -y -o Dir::State::status="$W/empty-status" \
    -o Dir::Cache::archives="$W/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
    -o Debug::NoLocking=1 -o APT::Install-Recommends=0 -o APT::Sandbox::User=root "$@"
}

say "fetching packages"
KPKG=$(apt-cache depends "$KERNEL_META" | awk '/Depends:/{print $2; exit}')
[ -n "$KPKG" ] || die "apt does not know what $KERNEL_META depends on (Debian 12 and apt-get update are needed)"
apt_get autoclean >/dev/null 2>&1 || true   # what newer versions have replaced
# shellcheck disable=SC2086
apt_get --download-only install $PACKAGES > "$W/apt.log" 2>&1 ||
  { tail -5 "$W/apt.log" >&2; die "apt could not fetch the packages (see $W/apt.log)"; }
# On their own: what the kernel (initramfs tools) and GRUB depend on is not needed.
for p in "$KPKG" grub-xen-host; do
  ls "$W"/archives/"${p}"_*.deb >/dev/null 2>&1 && continue
  (cd "$W/archives" && apt-get -q -o APT::Sandbox::User=root download "$p") >> "$W/apt.log" 2>&1 ||
    die "apt could not fetch $p (see $W/apt.log)"
done

say "unpacking"
S=$W/stage; R=$W/root
rm -rf "$S" "$R" "$W/kernel"; mkdir -p "$S" "$R" "$W/kernel"
for d in bin sbin lib lib64; do mkdir -p "$S/usr/$d"; ln -s usr/$d "$S/$d"; done   # as a Debian 12 is
: > "$W/versions.txt"
for deb in "$W"/archives/*.deb; do
  n=${deb##*/}; n=${n%%_*}
  case $n in   # never needed at run time here
    linux-image-*|perl*|libperl*|python3*|libpython3*|dpkg|debconf|libdb5*|passwd|\
    libc-bin|*-l10n|libgdbm*|media-types|adduser|sensible-utils) continue;;
  esac
  dpkg-deb --fsys-tarfile "$deb" | tar -C "$S" -x --keep-directory-symlink \
    --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' \
    --exclude='./lib/udev/hwdb.d' || die "unpacking $deb"
  case $n in xen-*|libxen*|libvirt*|openssh-server|busybox-static|lvm2|qemu-system-xen|grub-xen-host)
    dpkg-deb -W --showformat='${Package} ${Version}\n' "$deb" >> "$W/versions.txt";; esac
done
KDEB=$(find "$W/archives" -name "${KPKG}_*.deb" | sort | tail -1)
dpkg-deb -W --showformat='${Package} ${Version}\n' "$KDEB" >> "$W/versions.txt"
dpkg-deb --fsys-tarfile "$KDEB" | tar -C "$W/kernel" -x --wildcards './boot/*' \
  './lib/modules/*/modules.*' './lib/modules/*/kernel/drivers/xen' './lib/modules/*/kernel/drivers/net/xen-net*' \
  './lib/modules/*/kernel/drivers/block' './lib/modules/*/kernel/drivers/virtio' \
  './lib/modules/*/kernel/drivers/net/virtio_net.ko' './lib/modules/*/kernel/drivers/net/net_failover.ko' \
  './lib/modules/*/kernel/net/core' './lib/modules/*/kernel/net/bridge' './lib/modules/*/kernel/net/802' \
  './lib/modules/*/kernel/net/llc' './lib/modules/*/kernel/drivers/net/tun.ko' './lib/modules/*/kernel/drivers/md' \
  './lib/modules/*/kernel/drivers/cdrom' './lib/modules/*/kernel/fs' './lib/modules/*/kernel/lib' \
  './lib/modules/*/kernel/crypto' || die "unpacking $KDEB"
cp "$W"/kernel/boot/vmlinuz-* "$W/vmlinuz"
KVER=$(ls "$W/kernel/lib/modules")
grep -q '^CONFIG_XEN_DOM0=y' "$W/kernel/boot/config-$KVER" || die "$KPKG has no CONFIG_XEN_DOM0"
gzip -dc "$S/boot/xen-$XEN-amd64.gz" > "$W/xen"
# The kernel as plain ELF: to unpack xz on an emulated processor costs 4 s a boot and 6 s a guest. xz complains of
# what follows the stream, so the result is judged instead.
off=$(LC_ALL=C grep -abo $'\xfd7zXZ' "$W/vmlinuz" | head -1 | cut -d: -f1) || true
[ -z "$off" ] || tail -c +$((off + 1)) "$W/vmlinuz" | xz -dc --single-stream > "$W/vmlinux" 2>/dev/null || true
[ "$(head -c 4 "$W/vmlinux" 2>/dev/null | tr -d '\177')" = ELF ] || die "cannot unpack the kernel in $W/vmlinuz"

say "assembling dom0"
mkdir -p "$R"/{proc,sys,dev,run/lock,tmp,root/.ssh,guest,etc/ssh,etc/xen,var/cache/libvirt,var/lib/xen} \
  "$R"/var/lib/libvirt/images "$R"/var/log/{xen/console,libvirt/libxl} "$R"/usr/{bin,sbin,lib,lib64,share}
for d in bin sbin lib lib64; do ln -s usr/$d "$R/$d"; done
ln -s /run "$R/var/run"; ln -s /run/lock "$R/var/lock"

keep() {   # copies a path, and what a link points to
  local p=$1 t
  while :; do
    [ -e "$S$p" ] || [ -L "$S$p" ] || die "no $p in the packages"
    mkdir -p "$R$(dirname "$p")"; cp -a "$S$p" "$R$p"
    [ -L "$S$p" ] || break
    t=$(readlink "$S$p"); case $t in /*) p=$t;; *) p=$(dirname "$p")/$t;; esac
  done
}
LIB=usr/lib/x86_64-linux-gnu
libs_of() {   # the shared libraries of an unpacked file
  "$S/$LIB/ld-linux-x86-64.so.2" --inhibit-cache --list \
     --library-path "$S/$LIB:$S/usr/lib/xen-$XEN/lib/x86_64-linux-gnu:$S/$LIB/xen-$XEN" "$S$1" 2>/dev/null |
    awk -v s="$S" '/not found/{print "MISSING:" $1; next} $3 ~ "^" s {print substr($3, length(s)+1)}'
}
FILES=$PROGRAMS
for d in $LIBVIRT_DRIVERS; do FILES="$FILES /$LIB/libvirt/connection-driver/libvirt_driver_$d.so"; done
for b in $STORAGE_BACKENDS; do FILES="$FILES /$LIB/libvirt/storage-backend/libvirt_storage_backend_$b.so"; done
for f in "$S/$LIB"/libvirt/storage-file/*.so; do FILES="$FILES ${f#"$S"}"; done
for f in $FILES; do
  [ -e "$S$f" ] || [ -L "$S$f" ] || { say "not in the packages, left out: $f"; continue; }
  keep "$f"; p=$f; [ -L "$S$f" ] && p=${f%/*}/$(readlink "$S$f")
  for l in $(libs_of "$p"); do
    case $l in MISSING:*) say "warning: $f needs ${l#MISSING:}";; *) [ -e "$R$l" ] || keep "$l";; esac
  done
done
keep /$LIB/ld-linux-x86-64.so.2; ln -sf ../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$R/usr/lib64/ld-linux-x86-64.so.2"
cp "$S/bin/busybox" "$R/usr/bin/busybox"
for a in $("$S/bin/busybox" --list); do
  [ -e "$R/usr/bin/$a" ] || [ -e "$R/usr/sbin/$a" ] || ln -s busybox "$R/usr/bin/$a"
done
ln -sf ../bin/busybox "$R/usr/sbin/modprobe"
for c in $LVM_COMMANDS; do ln -sf lvm "$R/usr/sbin/$c"; done
ln -sf nc.openbsd "$R/usr/bin/nc"; ln -sf "/usr/lib/xen-$XEN/bin/xl" "$R/usr/bin/xl"
for f in xenstored xenconsoled; do ln -sf "/usr/lib/xen-$XEN/bin/$f" "$R/usr/sbin/$f"; done
mkdir -p "$R/usr/share/qemu/keymaps" "$R/usr/lib/xen-$XEN/boot"
cp -a "$S/usr/share/seabios" "$R/usr/share/"; cp -a "$S/usr/share/qemu/keymaps/en-us" "$R/usr/share/qemu/keymaps/"
cp -a "$S/usr/lib/xen-$XEN/boot/hvmloader" "$R/usr/lib/xen-$XEN/boot/"
cp "$S/usr/lib/grub-xen/grub-x86_64-xen.bin" "$R/guest/pvgrub"   # boots the kernel it finds on the guest's disk
cp -a "$S/etc/xen/scripts" "$R/etc/xen/"; : > "$R/etc/xen/xl.conf"
cp -a "$S/usr/share/libvirt" "$R/usr/share/"; rm -rf "$R/usr/share/libvirt/api"
# libvirt's Xen driver does not load unless it finds a model for the host's CPU. Xen hides "sep" on AMD and QEMU
# emulates no "vme"; every AMD model asks for one of them.
sed -i "/<feature name='sep'\/>/d" "$R"/usr/share/libvirt/cpu_map/x86_*.xml

cp -a "$HERE/dom0/." "$R/"
for f in libxl libvirt virtlogd; do : > "$R/etc/libvirt/$f.conf"; done
echo "$MODULES" > "$R/etc/modules"
[ -f "$W/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C xen-lab -f "$W/id_ed25519"
[ -f "$W/host_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C xen-lab-host -f "$W/host_ed25519"
cp "$W/host_ed25519" "$R/etc/ssh/ssh_host_ed25519_key"; chmod 600 "$R/etc/ssh/ssh_host_ed25519_key"
cp "$W/id_ed25519.pub" "$R/root/.ssh/authorized_keys"; chmod 700 "$R/root" "$R/root/.ssh"

M=$W/kernel/lib/modules/$KVER
"$S/bin/busybox" depmod -b "$W/kernel" "$KVER" 2>/dev/null
copy_modules() {   # root, modules...
  local root=$1 m f; shift
  for m in "$@"; do
    f=$(awk -F: -v m="/$m.ko" 'index($1, m) && substr($1, length($1)-length(m)+1)==m {print $1 $2; exit}' "$M/modules.dep")
    [ -n "$f" ] || die "no module $m in $KPKG"
    for f in $f; do
      f=${f#/lib/modules/"$KVER"/}
      mkdir -p "$root/lib/modules/$KVER/$(dirname "$f")"; cp "$M/$f" "$root/lib/modules/$KVER/$f"
    done
  done
  cp "$M/modules.builtin" "$M/modules.order" "$root/lib/modules/$KVER/"
  "$S/bin/busybox" depmod -b "$root" "$KVER"
}
# shellcheck disable=SC2086
copy_modules "$R" $MODULES

say "assembling the guests"
pack() { (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet); }
G=$W/guest; rm -rf "$G"; mkdir -p "$G"/{bin,proc,sys,dev,mnt}
cp -a "$HERE/guest/." "$G/"; cp "$S/bin/busybox" "$G/bin/busybox"
# shellcheck disable=SC2086
copy_modules "$G" $GUEST_MODULES
pack "$G" | gzip -1 > "$W/guest.gz"
cp "$W/guest.gz" "$R/guest/initrd.gz"; cp "$W/vmlinux" "$R/guest/vmlinux"

I=$W/disk; rm -rf "$I"; mkdir -p "$I"/{bin,sbin,proc,sys,dev,etc,root,seed,tmp}
cp "$S/bin/busybox" "$I/bin/busybox"; cp -a "$HERE/disk/." "$I/"; cp "$G"/sbin/* "$I/sbin/"; cp "$G/etc/inittab" "$I/etc/"
for a in $("$S/bin/busybox" --list); do [ -e "$I/bin/$a" ] || [ -e "$I/sbin/$a" ] || ln -s busybox "$I/bin/$a"; done
image() {   # file, size
  rm -f "$1"; truncate -s "$2" "$1"
  mke2fs -q -t ext4 -m 0 -O ^has_journal,^metadata_csum -E root_owner=0:0,lazy_itable_init=0 -L guest-root -d "$I" \
    "$1" || die "mke2fs could not make $1"
}
image "$W/guest.img" 16M
mkdir -p "$I/boot/grub"; cp "$W/vmlinux" "$I/boot/vmlinux"; cp "$W/guest.gz" "$I/boot/initrd.gz"
printf '%s\n' 'linux /boot/vmlinux console=hvc0 quiet panic=5 root=/dev/xvda' 'initrd /boot/initrd.gz' boot \
  > "$I/boot/grub/grub.cfg"
image "$W/guest-grub.img" 112M

say "packing"
pack "$R" > "$W/dom0.cpio.new"; mv "$W/dom0.cpio.new" "$W/dom0.cpio"
rm -rf "$S" "$R" "$G" "$I" "$W/kernel" "$W/apt.log" "$W/empty-status"
say "done: dom0.cpio of $(du -m "$W/dom0.cpio" | cut -f1) MB, $(find "$W/archives" -name '*.deb' | wc -l) packages of $(du -sm "$W/archives" | cut -f1) MB"
