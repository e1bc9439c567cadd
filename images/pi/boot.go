package pi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"portcullis/images/card"
	"portcullis/images/deb"
	"portcullis/images/debroot"
	"portcullis/images/fat"
	"portcullis/images/uki"
)

// bootPartition is the content of a boot partition and what follows from it.
type bootPartition struct {
	files   map[string][]byte // by card's names
	cmdline string
	digest  [32]byte // card.BootDigest
	policy  []byte   // policy.json, among files
}

// cmdline is the signed line: card.CmdlineMark, the release, the verity words, the
// recipe's. pi-init reads the boot partition again to measure it, and whoever wrote
// the card may give it another boot.img than the firmware. The line is what this very
// kernel got: with the release in it, no older release measures as a newer one, also
// where both have the same system.
func (b *builder) cmdline(root *rootInfo) string {
	own := []string{card.CmdlineMark, card.ReleaseWord(b.o.Sequence)}
	return strings.Join(append(append(own, root.Verity.Words()...), b.recipe.Cmdline...), " ")
}

// boot makes the files of a boot partition.
func (b *builder) boot(ctx context.Context, k *debroot.Kernel, root *rootInfo) (*bootPartition, error) {
	initramfs, err := b.initramfs(ctx, k, root)
	if err != nil {
		return nil, err
	}
	packed, err := b.pack(ctx, k)
	if err != nil {
		return nil, err
	}
	line := b.cmdline(root)
	p := &bootPartition{cmdline: line, files: map[string][]byte{
		card.KernelFile: packed, card.InitramfsFile: initramfs, card.CmdlineFile: []byte(line + "\n"),
	}}
	if b.o.Model == card.ModelQEMU {
		if p.files[card.UKIFile], err = b.unified(k, root, initramfs, line); err != nil {
			return nil, err
		}
	} else if err := b.firmware(ctx, k, p); err != nil {
		return nil, err
	}
	if b.o.Profile == card.ProfileRelease && b.o.Model != card.ModelQEMU {
		if err := b.seal(p, root.Epoch); err != nil {
			return nil, err
		}
	}
	p.digest = card.BootDigest(p.files)
	if p.policy, err = b.policy(p); err != nil {
		return nil, err
	}
	p.files[card.PolicyFile] = p.policy
	return p, nil
}

// checkKernel refuses what is no arm64 Image (Documentation/arch/arm64/booting.rst:
// magic "ARM\x64" at byte 56): the firmware would start it all the same.
func checkKernel(image []byte) error {
	if len(image) < 64 || string(image[56:60]) != "ARM\x64" {
		return refuse(debroot.ReasonMissing, "the kernel package's vmlinuz is not an arm64 Image")
	}
	return nil
}

// pack compresses the kernel as the Pi's firmware unpacks it. It is a stage of
// its own: the kernel changes less often than what is beside it.
func (b *builder) pack(ctx context.Context, k *debroot.Kernel) ([]byte, error) {
	// gzip(1) makes it 5 % smaller than compress/gzip does, and its bytes have
	// been the same for decades.
	tool, err := deb.NeedTool("gzip", "gzip")
	if err != nil {
		return nil, err
	}
	key := debroot.NewKey("pi kernel").Add("kernel", filepath.Base(k.Dir))
	dir, _, err := b.m.Stage(ctx, "pi-kernel", key, func(dir string) error {
		image, err := os.ReadFile(k.Image())
		if err != nil {
			return err
		}
		if err := checkKernel(image); err != nil {
			return err
		}
		out, err := filter(ctx, image, tool, "-9nc")
		if err != nil {
			return fmt.Errorf("compress the kernel: %w", err)
		}
		return os.WriteFile(filepath.Join(dir, card.KernelFile), out, 0o644)
	})
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, card.KernelFile))
}

// initramfs returns the compressed archive: pi-init, the modules it loads, and
// what it has to know of its own image.
func (b *builder) initramfs(ctx context.Context, k *debroot.Kernel, root *rootInfo) ([]byte, error) {
	files, err := k.InitrdFiles(ctx, b.recipe)
	if err != nil {
		return nil, err
	}
	info, err := b.info()
	if err != nil {
		return nil, err
	}
	if files[card.InfoPath], err = info.Encode(); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(b.program(initProgram).path)
	if err != nil {
		return nil, err
	}
	vendor, err := b.zymbitFiles(ctx)
	if err != nil {
		return nil, err
	}
	// Where the closure has /lib as a link to /usr/lib modules lie where it leads.
	if slices.ContainsFunc(vendor, func(e debroot.Extra) bool { return e.Path == "lib" && e.Link != "" }) {
		files = merged(files)
	}
	archive, err := debroot.Pack(program, files, uint32(root.Epoch), vendor...)
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	return Squeeze(ctx, archive)
}

// Squeeze compresses the initramfs as small as the kernel can unpack it, which it does
// while it starts its drivers: xz with the filter for arm64 code, which kernels from
// 6.12 know. Code has no use for literal context bits but for positions of four bytes.
func Squeeze(ctx context.Context, archive []byte) ([]byte, error) {
	tool, err := deb.NeedTool("xz", "xz-utils")
	if err != nil {
		return nil, err
	}
	// The kernel knows no other check than CRC32. One thread makes one block.
	out, err := filter(ctx, archive, tool, "--threads=1", "--check=crc32", "--arm64", "--lzma2=preset=9e,dict=8MiB,lc=2,lp=2,pb=2", "-c")
	if err != nil {
		return nil, fmt.Errorf("compress the initramfs: %w", err)
	}
	return out, nil
}

// filter runs a program with in as its standard input and returns its output.
func filter(ctx context.Context, in []byte, tool string, args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// merged moves files below lib/ to usr/lib/.
func merged(files map[string][]byte) map[string][]byte {
	out := make(map[string][]byte, len(files))
	for name, data := range files {
		if strings.HasPrefix(name, "lib/") {
			name = "usr/" + name
		}
		out[name] = data
	}
	return out
}

// unified is the image that UEFI starts, from the same parts.
func (b *builder) unified(k *debroot.Kernel, root *rootInfo, initramfs []byte, line string) ([]byte, error) {
	image, err := os.ReadFile(k.Image())
	if err != nil {
		return nil, err
	}
	stub, err := os.ReadFile(k.Stub())
	if err != nil {
		return nil, err
	}
	release := fmt.Sprintf("ID=debian\nNAME=\"Portcullis Pi image\"\nPRETTY_NAME=\"Portcullis Pi image (%s, %s)\"\nIMAGE_ID=portcullis-pi-%s\nIMAGE_VERSION=%d\n",
		b.o.Model, b.o.Profile, b.o.Model, b.o.Sequence)
	out, err := uki.Build(stub, uki.Parts{OSRelease: []byte(release), Cmdline: line, Uname: k.Release, Kernel: image, Initrd: initramfs})
	if err != nil {
		return nil, fmt.Errorf("unified kernel image: %w", err)
	}
	return out, nil
}

// fat writes the partition to a file of card.BootSize bytes.
func (p *bootPartition) fat(path, label string, root *rootInfo) error {
	var size int
	for _, f := range p.files {
		size += len(f)
	}
	if size > card.BootSize-(1<<20) {
		return refuse(debroot.ReasonTooLarge, "the boot files have %d MiB, the partition %d MiB: take modules or firmware out", size>>20, card.BootSize>>20)
	}
	return writeFAT(path, card.BootSize, label, p.digest[:], time.Unix(root.Epoch, 0), p.files)
}

// writeFAT makes a file with a FAT file system whose serial number follows from seed.
func writeFAT(path string, size int64, label string, seed []byte, at time.Time, files map[string][]byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	id := sha256.Sum256(append([]byte("portcullis volume "+label+"\n"), seed...))
	o := fat.Options{Size: size, Label: label, ID: binary.LittleEndian.Uint32(id[:]), Time: at}
	if err := fat.Build(f, o, maps.Clone(files)); err != nil {
		return err
	}
	return f.Close()
}
