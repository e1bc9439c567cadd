package image

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	. "portcullis/verifier/image/imagetest"
)

// BenchmarkOpen reads an image of 300 MB: two layers, one of them packed, half of
// their bytes random. bytes/s is of the unpacked layers.
func BenchmarkOpen(b *testing.B) {
	noise := rand.NewChaCha8([32]byte{1})
	layer := func(name string) []byte {
		files := Files{}
		for i := range 150 {
			data := bytes.Repeat([]byte("portcullis "), 1<<20/11)
			if _, err := io.ReadFull(noise, data[:len(data)/2]); err != nil {
				b.Fatal(err)
			}
			files[name+"/"+string(rune('a'+i%26))+string(rune('a'+i/26))] = data
		}
		return Pack(b, files)
	}
	path := OCI(b, layer("one"), layer("two")).File(b)
	st, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		a, err := Open(b.Context(), path, Options{})
		if err != nil {
			b.Fatal(err)
		}
		unpacked := int64(0)
		for _, l := range a.Layers {
			unpacked += l.Unpacked
		}
		b.SetBytes(unpacked)
		a.Close()
	}
	b.StopTimer()
	b.ReportMetric(float64(st.Size())/1e6, "file-MB")
}

// BenchmarkHash is what nobody can do without: the SHA-256 of so many bytes, once.
func BenchmarkHash(b *testing.B) {
	data := make([]byte, 8<<20)
	b.SetBytes(int64(len(data)))
	for range b.N {
		sha256.Sum256(data)
	}
}
