package flash

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"portcullis/images/flash/flashtest"
)

// The image of the benchmarks: 512 MiB with 240 MiB of data, as a Pi's.
func benchImage(b *testing.B) (*flashtest.Image, string) {
	b.Helper()
	raw := make([]byte, 512*mib)
	copy(raw, flashtest.Noise(1, mib))
	copy(raw[33*mib:], flashtest.Noise(2, 30*mib))
	copy(raw[161*mib:], flashtest.Noise(3, 209*mib))
	i := flashtest.Pack(b, raw)
	target := filepath.Join(b.TempDir(), "card.img")
	if err := os.WriteFile(target, nil, 0o644); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(target, 2<<30); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	return i, target
}

// BenchmarkFlash writes and reads back.
func BenchmarkFlash(b *testing.B) {
	i, target := benchImage(b)
	img, err := OpenImage(i.Path, nil)
	if err != nil {
		b.Fatal(err)
	}
	d, err := Host().Find(target)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		dev, err := OpenDevice(d)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Run(b.Context(), Options{Image: img, Target: dev}); err != nil {
			b.Fatal(err)
		}
		dev.Close()
	}
}

// BenchmarkZstdDD is what people type instead; it reads nothing back.
func BenchmarkZstdDD(b *testing.B) {
	i, target := benchImage(b)
	for b.Loop() {
		c := exec.Command("sh", "-c", `zstd -qdc "$1" | dd of="$2" bs=4M iflag=fullblock oflag=direct conv=fsync,notrunc status=none`, "sh", i.Path, target)
		if out, err := c.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
}
