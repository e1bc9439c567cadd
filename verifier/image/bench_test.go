package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
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

// BenchmarkRead reads an image of 300 MiB that comes through a pipe, as docker save writes it: three plain
// layers of files of 1 MiB, and the manifest behind them.
func BenchmarkRead(b *testing.B) {
	var layers [][]byte
	noise := rand.NewChaCha8([32]byte{1})
	for range 3 {
		files := Files{}
		for i := range 100 {
			data := make([]byte, 1<<20)
			if _, err := io.ReadFull(noise, data); err != nil {
				b.Fatal(err)
			}
			files[fmt.Sprint(i)] = data
		}
		layers = append(layers, Pack(b, files))
	}
	path, dir := Saved(b, layers...).File(b), b.TempDir()
	layers = nil
	b.SetBytes(300 << 20)
	for b.Loop() {
		cat := exec.Command("cat", path)
		out, err := cat.StdoutPipe()
		if err == nil {
			err = cat.Start()
		}
		if err != nil {
			b.Fatal(err)
		}
		a, err := Read(b.Context(), out, dir, Options{Layer: func(*Layer) error { return nil }})
		if err := errors.Join(err, cat.Wait()); err != nil {
			b.Fatal(err)
		}
		a.Close()
	}
}

// BenchmarkHash is what nobody can do without: the SHA-256 of so many bytes, once.
func BenchmarkHash(b *testing.B) {
	data := make([]byte, 8<<20)
	b.SetBytes(int64(len(data)))
	for range b.N {
		sha256.Sum256(data)
	}
}
