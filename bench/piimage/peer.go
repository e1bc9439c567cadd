package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"portcullis/images/deb"
	"portcullis/images/recipe"
)

// peerResult is one build with the usual tools.
type peerResult struct {
	seconds    float64
	card, root int64
}

// peerTools are looked for before anything is measured.
var peerTools = map[string]string{
	"mmdebstrap": "mmdebstrap", "mksquashfs": "squashfs-tools", "veritysetup": "cryptsetup-bin", "sfdisk": "fdisk",
	"mkfs.vfat": "dosfstools", "mcopy": "mtools", "gzip": "gzip", "zstd": "zstd",
}

// script builds a card of the same partitions from the same packages: no accounts,
// no units, no initramfs of its own, no signatures, no list of contents.
const script = `set -eu
mmdebstrap --quiet --variant=extract --architectures=arm64 --components="$COMPONENTS" --include="$PACKAGES" "$SUITE" root.tar
mksquashfs - root.img -tar -comp zstd -Xcompression-level 9 -b 131072 -no-xattrs -quiet -no-progress <root.tar
veritysetup format root.img hashes >verity.txt
cat hashes >>root.img
tar -xf root.tar --wildcards './boot/vmlinuz-*'
gzip -9nc boot/vmlinuz-* >kernel8.img
rm -f a.fat b.fat conf.fat
truncate -s 32M conf.fat; truncate -s 64M a.fat b.fat
mkfs.vfat --invariant -n PCCONF conf.fat >/dev/null
mkfs.vfat --invariant -n PCBOOT_A a.fat >/dev/null
mkfs.vfat --invariant -n PCBOOT_B b.fat >/dev/null
mcopy -i a.fat kernel8.img ::/
seed=$(( ($(stat -c %s root.img) + 1048575) / 1048576 ))
truncate -s $(( 1 + 32 + 64 + 64 + seed + 16 + 1 ))M pi.img
sfdisk --quiet pi.img <<END
label: gpt
start=1MiB, size=32MiB, name=PCCONF
start=33MiB, size=64MiB, name=PCBOOT_A
start=97MiB, size=64MiB, name=PCBOOT_B
start=161MiB, size=${seed}MiB, name=PCSEED
start=$(( 161 + seed ))MiB, size=16MiB, name=PCCRYPT
END
put() { dd if="$1" of=pi.img bs=1M seek="$2" conv=notrunc,sparse status=none; }
put conf.fat 1; put a.fat 33; put b.fat 97; put root.img 161
zstd -q -T2 -3 -f pi.img -o pi.img.zst
`

// needPeer refuses to begin where one of the peer's tools is missing.
func needPeer() error {
	for tool, pkg := range peerTools {
		if _, err := deb.NeedTool(tool, pkg); err != nil {
			return err
		}
	}
	return nil
}

// tool runs a program of a peer's in dir.
func tool(ctx context.Context, dir string, env []string, argv ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin"), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, bytes.TrimSpace(errs.Bytes()[max(0, errs.Len()-2000):]))
	}
	return nil
}

func peer(ctx context.Context, dir string, rec *recipe.Recipe) (peerResult, error) {
	var r peerResult
	packages := append([]string{rec.Kernel.Package, rec.Kernel.Stub}, rec.Packages...)
	begin := time.Now()
	if err := tool(ctx, dir, []string{"SUITE=" + rec.Suite, "COMPONENTS=" + strings.Join(rec.Components, ","), "PACKAGES=" + strings.Join(packages, ",")},
		"sh", "-c", script); err != nil {
		return r, err
	}
	r.seconds = time.Since(begin).Seconds()
	for name, size := range map[string]*int64{"pi.img.zst": &r.card, "root.img": &r.root} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return r, err
		}
		*size = st.Size()
	}
	return r, nil
}
