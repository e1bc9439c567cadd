package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"portcullis/images/card"
	"portcullis/images/deb"
	"portcullis/images/luks2"
	"portcullis/lab/qemu"
)

// buildLimit bounds the making of the peer's initramfs: thousands of small
// programs on an emulated machine.
const buildLimit = 20 * time.Minute

// made is the peer's initramfs.
type made struct {
	kernel, initramfs []byte
	release           string
	took              time.Duration // 0: it was cached
}

// buildInitramfs runs Debian's own mkinitramfs, as its packages are, in an
// emulated arm64 machine whose root is the unpacked packages. The volume that the
// initramfs will look for has the given UUID. kernelPackage is the kernel for which
// it is made, tpm the module that drives its chip.
func buildInitramfs(ctx context.Context, cache, kernelPackage, tpm, uuid string, say func(string)) (*made, error) {
	store := &deb.Store{Dir: filepath.Join(cache, "deb")}
	lock, err := resolve(ctx, store, kernelPackage)
	if err != nil {
		return nil, err
	}
	m := &made{}
	if m.release, m.kernel, err = kernel(ctx, store, lock); err != nil {
		return nil, err
	}
	extra := extraFiles(m.release, tpm, uuid)
	name := filepath.Join(cache, "piboot", "initramfs-"+digest(lock, extra))
	if m.initramfs, err = os.ReadFile(name); err == nil {
		return m, nil
	}
	began := time.Now()
	say("the peer's initramfs for " + kernelPackage + ", by mkinitramfs in an emulated machine: this takes minutes, once")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(name), ".build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := writeTree(ctx, filepath.Join(dir, "tree"), store, lock, extra); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "kernel"), m.kernel, 0o600); err != nil {
		return nil, err
	}
	// The hooks look for the volume that they are told of.
	if err := writeVolume(filepath.Join(dir, "volume"), uuid); err != nil {
		return nil, err
	}
	if m.initramfs, err = runBuild(ctx, dir); err != nil {
		return nil, err
	}
	m.took = time.Since(began)
	if err := os.WriteFile(name+".new", m.initramfs, 0o644); err != nil {
		return nil, err
	}
	return m, os.Rename(name+".new", name)
}

func digest(lock *deb.Lock, extra map[string]file) string {
	h := sha256.New()
	h.Write(lock.Encode())
	fmt.Fprint(h, extra) // fmt prints maps in the order of their keys
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// runBuild boots the machine in dir and takes the initramfs from its second
// serial line, which ends with its length and digest on the first.
func runBuild(ctx context.Context, dir string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	program, err := qemu.Find(ctx, "qemu-system-aarch64", "qemu-system-arm")
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return qemu.Escape(filepath.Join(dir, name)) }
	cmd := exec.CommandContext(ctx, program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "virt,gic-version=3,acpi=off", "-accel", "tcg,thread=multi", "-cpu", "max,pauth-impdef=on", "-smp", "2", "-m", "3072",
		"-kernel", in("kernel"), "-initrd", in("tree"), "-append", "console=ttyAMA0 rdinit=/piboot/build panic=1 loglevel=4",
		"-chardev", "file,id=console,path="+in("console"), "-serial", "chardev:console",
		"-drive", "if=none,id=volume,format=raw,file="+in("volume"), "-device", "virtio-blk-pci,drive=volume",
		"-chardev", "file,id=out,path="+in("out"), "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=out,name=out")
	said, err := cmd.CombinedOutput()
	console, _ := os.ReadFile(filepath.Join(dir, "console"))
	if err != nil {
		return nil, fmt.Errorf("QEMU: %w: %s", err, said)
	}
	out, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil {
		return nil, err
	}
	if want := fmt.Sprintf("PIBOOT built %x", sha256.Sum256(out)); !bytes.Contains(console, []byte(want)) || len(out) == 0 {
		return nil, fmt.Errorf("mkinitramfs did not end well; the console:\n%s", console[max(0, len(console)-4000):])
	}
	return out, nil
}

// buildKey opens the empty volume of the machine that builds, and nothing else.
const buildKey = "the key of an empty volume"

// writeVolume makes an empty volume that looks like the peer's.
func writeVolume(path, uuid string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const size = card.CryptHeader + 1<<20
	if err := f.Truncate(size); err != nil {
		return err
	}
	volumeKey, err := format(f, size, uuid, []byte(buildKey), nil)
	clear(volumeKey)
	return errors.Join(err, f.Sync())
}

// format writes the header as first boot writes ours: same cipher, sector size and
// key derivation. token, where given, returns the token of the keyslot with this number.
func format(d luks2.Device, size int64, uuid string, pass []byte, token func(slot int) ([]byte, error)) (volumeKey []byte, err error) {
	volumeKey = make([]byte, luks2.VolumeKeySize)
	if _, err := rand.Read(volumeKey); err != nil {
		return nil, err
	}
	h, err := luks2.Format(d, size, luks2.Options{UUID: uuid}, volumeKey)
	if err != nil {
		return nil, err
	}
	slot, err := h.AddSlot(d, volumeKey, pass, luks2.ForChip())
	if err != nil {
		return nil, err
	}
	if token != nil {
		text, err := token(slot)
		if err != nil {
			return nil, err
		}
		if _, err := h.SetToken(-1, text); err != nil {
			return nil, err
		}
	}
	return volumeKey, h.Write(d)
}
