package pi

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"portcullis/images/card"
	"portcullis/images/cpio"
	"portcullis/images/deb"
	"portcullis/images/debroot"
	"portcullis/images/fat"
	"portcullis/images/gpt"
)

var (
	cloudKernel = regexp.MustCompile(`^linux-image-[0-9].*-cloud-arm64$`)
	kernelFile  = regexp.MustCompile(`^/boot/vmlinuz-[^/]+$`)
)

// kernel is Debian's for arm64 machines in QEMU.
var kernel = sync.OnceValues(func() ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cache, err := debroot.DefaultCache()
	if err != nil {
		return nil, err
	}
	store := &deb.Store{Dir: filepath.Join(cache, "deb")}
	request := deb.Request{Suite: "trixie", Arch: "arm64", Components: []string{"main", "non-free-firmware"}, Packages: []string{"linux-image-cloud-arm64"}}
	lock, err := store.Resolve(ctx, request)
	if err != nil {
		return nil, err
	}
	for _, p := range lock.Packages {
		if !cloudKernel.MatchString(p.Name) {
			continue
		}
		if err := store.Fetch(ctx, request, &deb.Lock{Packages: []deb.Package{p}}, nil); err != nil {
			return nil, err
		}
		var found []byte
		err := deb.Walk(ctx, store.Path(p), func(h *tar.Header, r io.Reader) (err error) {
			if kernelFile.MatchString(h.Name) {
				found, err = io.ReadAll(r)
			}
			return err
		})
		if err == nil && found == nil {
			err = errors.New("the kernel package has no kernel")
		}
		return found, err
	}
	return nil, errors.New("no kernel package")
})

// initramfs is the init of testdata alone.
func initramfs(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build init: %v\n%s", err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive, 0)
	for _, err := range []error{
		w.Dir("dev", 0o755), w.CharDevice("dev/console", 0o600, 5, 1), w.Dir("proc", 0o755), w.File("init", 0o755, program), w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return cpio.Zstd(archive.Bytes())
}

// testCard lays out a card with the three FAT partitions; boot maps a partition
// to its files.
func testCard(t *testing.T, boot map[int]map[string][]byte) Card {
	t.Helper()
	c := InDir(t.TempDir())
	f, err := os.Create(c.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 256 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	table := &gpt.Table{DiskID: gpt.FromBytes([16]byte{1}), Sectors: size / card.SectorSize}
	first := uint64(card.Align / card.SectorSize)
	for n, p := range []struct {
		label string
		size  int64
	}{{card.LabelConf, card.ConfSize}, {card.LabelBootA, card.BootSize}, {card.LabelBootB, card.BootSize}} {
		sectors := uint64(p.size / card.SectorSize)
		table.Partitions = append(table.Partitions, gpt.Partition{Number: n + 1, Name: p.label,
			Type: gpt.MustGUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4"), ID: gpt.FromBytes([16]byte{2, byte(n)}), First: first, Last: first + sectors - 1})
		first += sectors
	}
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	boot[card.PartConf] = map[string][]byte{
		card.AutobootFile: autobootText(card.PartBootA), card.SeedFile: bytes.Repeat([]byte("\n"), card.SeedSize),
	}
	for _, p := range table.Partitions {
		err := fat.Build(io.NewOffsetWriter(f, p.Offset()), fat.Options{Size: p.Size(), Label: p.Name}, boot[p.Number])
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func autobootText(partition int) []byte {
	return card.EncodeAutoboot(map[int]card.Slot{card.PartBootA: card.SlotA, card.PartBootB: card.SlotB}[partition])
}

func bootSet(t *testing.T, cmdline string) map[string][]byte {
	t.Helper()
	k, err := kernel()
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{card.KernelFile: k, card.InitramfsFile: initramfs(t), card.CmdlineFile: []byte(cmdline + "\n")}
}

// A guest that resets itself is booted from where autoboot.txt points then; what
// it writes is seen to the last byte, and what is typed reaches it.
func TestRebootFollowsAutoboot(t *testing.T) {
	files := bootSet(t, "console=ttyAMA0 slot=a")
	other := map[string][]byte{}
	for n, b := range files {
		other[n] = b
	}
	other[card.CmdlineFile] = []byte("console=ttyAMA0 slot=b")
	img := make(image, 48<<20)
	if err := fat.Build(img, fat.Options{Size: int64(len(img))}, other); err != nil {
		t.Fatal(err)
	}
	c := testCard(t, map[int]map[string][]byte{
		card.PartBootA: files,
		// The second slot's files are inside a boot.img, as the release profile has them.
		card.PartBootB: {card.BootImgFile: img},
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var seen []Boot
	began := time.Now()
	m, err := Start(ctx, Config{Name: "reboot", Dir: t.TempDir(), Card: c.Image, TPM: c.TPM, Power: func(b Boot) { seen = append(seen, b) }})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	expect := func(pattern string) {
		t.Helper()
		if _, err := m.Expect(ctx, pattern); err != nil {
			t.Fatal(err)
		}
	}
	expect(`PITEST cmdline .*slot=a`)
	t.Logf("PID 1 speaks after %.1f s", time.Since(began).Seconds())
	expect(`PITEST ready`)
	if err := m.Send("hello\n"); err != nil {
		t.Fatal(err)
	}
	expect(`PITEST said "hello"`)
	if err := c.overwrite(card.AutobootFile, autobootText(card.PartBootB)); err != nil {
		t.Fatal(err)
	}
	if err := m.Send("reboot\n"); err != nil {
		t.Fatal(err)
	}
	expect(`PITEST cmdline .*slot=b`)
	expect(`PITEST ready`)
	if err := m.Send("poweroff\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-ctx.Done():
		t.Fatal("it does not power off")
	}
	if err := m.Err(); err != nil {
		t.Error(err)
	}
	if len(seen) != 2 || seen[0].Partition != card.PartBootA || seen[1].Partition != card.PartBootB || seen[1].Reason != "guest-reset" {
		t.Errorf("boots %+v, want one of slot a and, after a reset, one of slot b", seen)
	}
	log, err := os.ReadFile(ConsoleLog(m.cfg.Dir))
	if err != nil || string(log) != m.Console().Text() {
		t.Errorf("log of %d bytes, console of %d (%v)", len(log), len(m.Console().Text()), err)
	}
	if _, err := m.Expect(ctx, "never"); !errors.Is(err, ErrOff) {
		t.Errorf("waiting for a machine without power: %v", err)
	}
}

// image is a file in memory.
type image []byte

func (i image) WriteAt(p []byte, off int64) (int, error) { return copy(i[off:], p), nil }
