package fat

import "testing"

// BenchmarkBuild lays out a boot partition of 64 MiB with 40 MB in it.
func BenchmarkBuild(b *testing.B) {
	files := example()
	files["boot.img"] = noise(9, 40_000_000)
	var n int64
	for _, f := range files {
		n += int64(len(f))
	}
	buf := make(memory, 64<<20)
	b.SetBytes(n)
	for b.Loop() {
		if err := Build(buf, Options{Size: 64 << 20, Label: "PCBOOT_A", Time: when}, files); err != nil {
			b.Fatal(err)
		}
	}
}

type memory []byte

func (m memory) WriteAt(b []byte, off int64) (int, error) { return copy(m[off:], b), nil }
